/* Vectors of 16 floats by the extensions of GCC and Clang, and parts of them that are as wide as the CPU's registers. */

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#define ALWAYS static inline __attribute__((always_inline))
#define LANES 16

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint32_t v16u __attribute__((vector_size(64)));
typedef int16_t v16h __attribute__((vector_size(32)));
typedef uint16_t v16uh __attribute__((vector_size(32)));
typedef int8_t v16b __attribute__((vector_size(16)));

/* Compilers keep vectors wider than the registers in memory, so what is summed in a loop is summed in parts. */
#if defined(__AVX512F__)
#define PART_BYTES 64
#elif defined(__AVX__)
#define PART_BYTES 32
#else
#define PART_BYTES 16
#endif
#define PARTS (64 / PART_BYTES)
typedef float part __attribute__((vector_size(PART_BYTES)));
typedef int32_t parti __attribute__((vector_size(PART_BYTES)));
typedef uint32_t partu __attribute__((vector_size(PART_BYTES)));
typedef uint16_t partuh __attribute__((vector_size(PART_BYTES / 2)));

ALWAYS partu load_part(const void *line, int index) {
    partu v;
    memcpy(&v, (const char *)line + PART_BYTES * index, sizeof v);
    return v;
}
ALWAYS void store_part(void *line, int index, part v) { memcpy((char *)line + PART_BYTES * index, &v, sizeof v); }
ALWAYS parti spread_part(int32_t i) { return (parti){0} + i; }

/* Half-precision floats; the multiplication puts the exponent's bias right, subnormals included. */
ALWAYS part load_half_part(const void *line, int index) {
    const char *p = (const char *)line + PART_BYTES / 2 * index;
#if defined(__AVX512F__)
    return (part)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX__) && defined(__F16C__)
    return (part)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    partuh narrow;
    memcpy(&narrow, p, sizeof narrow);
    partu wide = __builtin_convertvector(narrow, partu);
    part magnitude = (part)((wide & 0x7fff) << 13) * 0x1p112f;
    return (part)((partu)magnitude | ((wide & 0x8000) << 16));
#endif
}

ALWAYS v16 load(const float *p) {
    v16 v;
    memcpy(&v, p, sizeof v);
    return v;
}
ALWAYS void store(float *p, v16 v) { memcpy(p, &v, sizeof v); }
ALWAYS v16u load_bits(const void *p) {
    v16u v;
    memcpy(&v, p, sizeof v);
    return v;
}
ALWAYS v16 spread(float f) { return (v16){f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f}; }
ALWAYS v16i spread_int(int32_t i) { return (v16i){i, i, i, i, i, i, i, i, i, i, i, i, i, i, i, i}; }
ALWAYS v16 choose(v16i mask, v16 yes, v16 no) { return (v16)(((v16i)yes & mask) | ((v16i)no & ~mask)); }
ALWAYS v16 larger(v16 a, v16 b) { return choose(a > b, a, b); }

ALWAYS float total(v16 v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    float s[LANES];
    memcpy(s, &v, sizeof v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) s[i] += s[i + width];
    return s[0];
#endif
}
ALWAYS int32_t total_int(v16i v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
#endif
}
ALWAYS float largest(v16 v) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)v);
#else
    float s[LANES];
    memcpy(s, &v, sizeof v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) s[i] = s[i] > s[i + width] ? s[i] : s[i + width];
    return s[0];
#endif
}

ALWAYS v16 load_bfloat16(const void *p) {
    v16uh narrow;
    memcpy(&narrow, p, sizeof narrow);
    return (v16)(__builtin_convertvector(narrow, v16u) << 16);
}

ALWAYS void store_bfloat16(void *p, v16 v) {
    v16u bits = (v16u)v;
    v16uh narrow = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, v16uh);  /* to nearest even */
    memcpy(p, &narrow, sizeof narrow);
}

ALWAYS v16 nearest(v16 v) { return (v + 12582912.0f) - 12582912.0f; }  /* to an integer, for |v| < 2^22 */

ALWAYS v16 exponential(v16 x) {
    x = larger(x, spread(-87.0f));
    x = choose(x < 88.0f, x, spread(88.0f));
    v16 n = nearest(x * 1.44269504f);
    v16 r = x - n * 0.693145752f - n * 1.42860677e-6f;
    v16 p = r * 1.98412698e-4f + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    v16i exponent = (__builtin_convertvector(n, v16i) + 127) << 23;
    return p * (v16)exponent;
}

ALWAYS v16 silu(v16 x) { return x / (1.0f + exponential(-x)); }
/* Lane i of the result is the sum over the lanes of p[i]. */
ALWAYS v16 sums(v16 *p) {
#ifdef __AVX512F__
    for (int i = 0; i < 8; i++) {
        __m512 a = (__m512)p[i], b = (__m512)p[i + 8];
        p[i] = (v16)_mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    for (int i = 0; i < 4; i++) {
        __m512 a = (__m512)p[i], b = (__m512)p[i + 4];
        p[i] = (v16)_mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    __m512 a = (__m512)p[0], b = (__m512)p[1], c = (__m512)p[2], d = (__m512)p[3];
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 all = _mm512_add_ps(
        (__m512)_mm512_unpacklo_pd((__m512d)ab, (__m512d)cd), (__m512)_mm512_unpackhi_pd((__m512d)ab, (__m512d)cd));
    /* 128-bit lane l, place s holds the sum of vector ORDER[4 l + s] */
    const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15);
    return (v16)_mm512_permutexvar_ps(places, all);
#else
    float s[LANES];
    for (int i = 0; i < LANES; i++) s[i] = total(p[i]);
    return load(s);
#endif
}
