/* Products of a matrix in panels with a few lines of activations, for every set of instructions that has a way of its own.
 *
 * A matrix [rows, columns] is stored in panels of 16 rows. Within a panel the 16 rows' values of one column (float32),
 * two columns (bfloat16), four (int8) or eight (int4) make one line of 64 bytes, so a panel is read front to back, sums
 * stay in the lanes of vectors and no sum over lanes is needed. Layouts are written by packing.py.
 *
 * A line of 64 bytes is one vector of AVX-512, two of AVX2, four of SSE and NEON: its parts. Sums of all lines of
 * activations that one reading of a panel serves stay in registers, which is what MOST_LINES is about.
 *
 * Integer weights are multiplied with integer activations. Activations are rounded to 16 bits per group of 32 (one part
 * in 65024 of the group's largest), so what is lost is in the weights. All sums of products are exact integers, so
 * every build gives the same ones:
 *
 *     VNNI      codes are bytes, activations a high and a low byte; four products a lane and instruction
 *     AVX2,     bytes: two products of 16 bits a lane and instruction (`vpmaddwd`); codes of 4 bits: four products of
 *     AVX-512   bytes (`vpmaddubsw`), and sums of a group, 16 products of 15 * 128 at most, fit into 16 bits
 *     others    what the compiler makes of 32-bit products
 */

#pragma once
#include "vectors.h"

#define GROUP 32 /* columns that share a scale */
#define PAD 64   /* columns of an activation are padded with zeros to a multiple of this */
#define AHEAD 8192 /* bytes between what is multiplied and what is asked for */

#if defined(__AVX512F__)
#define MOST_LINES 12 /* lines that one reading of a panel serves */
#define SUMS 24       /* vectors of sums that fit into registers beside all else */
#elif defined(__aarch64__)
#define MOST_LINES 6
#define SUMS 24
#elif defined(__AVX__)
#define MOST_LINES 6
#define SUMS 12
#else
#define MOST_LINES 3
#define SUMS 12
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define BY_BYTES 1 /* high and low bytes of activations, for every format of codes */
#elif defined(__AVX2__)
#define BY_BYTES 0 /* for nibbles alone */
#endif

enum { FLOAT32, BFLOAT16, INT8, INT4 };

typedef struct {
    const char *data;    /* panels */
    const float *bias;   /* [rows padded to 16], or null */
    int64_t rows, columns, format;
} Matrix;

/* Activations as a product reads them: floats, or 16-bit integers with a scale for each group of 32. */
typedef struct {
    float *x;           /* [lines, stride] */
    int8_t *high, *low; /* [lines, stride]: value = 256 * high + low */
    int16_t *pairs;     /* [lines, stride] as columns 0, 2, 1, 3 of every four */
    float *scale;       /* [lines, stride / 32] */
    float *sum;         /* [lines, stride / 32]: of the rounded activations */
    int32_t *offset;    /* [lines, stride / 32]: -128 times the integers' sum, since int8 codes are stored plus 128 */
    int64_t stride, lines;  /* that there is room for */
} Input;

/* What this was built for. */
static const char *instructions_of_build(void) {
#if defined(__AVX512VNNI__)
    return "avx512_vnni";
#elif defined(__AVX512BW__)
    return "avx512";
#elif defined(__AVXVNNI__)
    return "avx_vnni";
#elif defined(__AVX2__)
    return "avx2";
#elif defined(__SSE2__)
    return "sse2";
#elif defined(__aarch64__)
    return "neon";
#else
    return "portable";
#endif
}

/* Integer products do enough per line that the hardware's own prefetching runs dry; floats' do not. */
ALWAYS void expect_soon(const char *w) { __builtin_prefetch(w + AHEAD, 0, 3); }

/* How many of `lines` to multiply at once, so that all readings of a panel serve about as many. */
ALWAYS int at_once(int64_t lines) {
    int64_t readings = (lines + MOST_LINES - 1) / MOST_LINES;
    return (int)((lines + readings - 1) / readings);
}

/* ---- y[b] = panel . x[b], for `lines` lines, a constant once inlined ---- */

/* Independent sums of a line hide the latency of an addition. */
ALWAYS int ways_of(int lines) {
    return 4 * PARTS * lines <= SUMS ? 4 : 2 * PARTS * lines <= SUMS ? 2 : 1;
}

/* One column of a panel: of two bfloat16 columns in a line of 64 bytes, the first is in the lower halves. */
ALWAYS part float_column(const char *w, int column, int index, const int narrow) {
    if (!narrow) return (part)load_part(w + 64 * column, index);
    partu both = load_part(w + 64 * (column / 2), index);
    return (part)(column % 2 ? both & 0xffff0000u : both << 16);
}

ALWAYS void panel_floats(
    const char *w, int64_t columns, const Input *in, int64_t first, v16 *y, const int lines, const int narrow) {
    const int ways = ways_of(lines);
    const float *x = in->x + first * in->stride;
    part sums[MOST_LINES][4][PARTS];
    for (int b = 0; b < lines; b++)
        for (int way = 0; way < ways; way++)
            for (int p = 0; p < PARTS; p++) sums[b][way][p] = (part){0};
    for (int64_t c = 0; c < columns; c += 4, w += narrow ? 128 : 256)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            part line[PARTS];
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++) line[p] = float_column(w, k, p, narrow);
#pragma GCC unroll 12
            for (int b = 0; b < lines; b++)
#pragma GCC unroll 4
                for (int p = 0; p < PARTS; p++) sums[b][k % ways][p] += line[p] * x[b * in->stride + c + k];
        }
    for (int b = 0; b < lines; b++)
        for (int p = 0; p < PARTS; p++) {
            part all = sums[b][0][p];
            for (int way = 1; way < ways; way++) all += sums[b][way][p];
            store_part(&y[b], p, all);
        }
}

ALWAYS void panel_float32(const char *w, int64_t columns, const Input *in, int64_t first, v16 *y, const int lines) {
    panel_floats(w, columns, in, first, y, lines, 0);
}
ALWAYS void panel_bfloat16(const char *w, int64_t columns, const Input *in, int64_t first, v16 *y, const int lines) {
    panel_floats(w, columns, in, first, y, lines, 1);
}

/* ---- sums of codes (unsigned bytes) times activations, in one part; `quad` counts columns in fours ---- */

#ifdef BY_BYTES
typedef struct {
    parti high, low; /* of a byte's products: 32-bit sums, or 16-bit ones of a group of nibbles */
} ByteDots;

ALWAYS parti spread_bytes(const int8_t *x, int64_t quad) {
    int32_t four;
    memcpy(&four, x + 4 * quad, 4);
    return spread_part(four);
}

ALWAYS void add_bytes(ByteDots *d, partu codes, const Input *in, int64_t quad) {
    parti high = spread_bytes(in->high, quad), low = spread_bytes(in->low, quad);
#if defined(__AVX512VNNI__)
    d->high = (parti)_mm512_dpbusd_epi32((__m512i)d->high, (__m512i)codes, (__m512i)high);
    d->low = (parti)_mm512_dpbusd_epi32((__m512i)d->low, (__m512i)codes, (__m512i)low);
#elif defined(__AVXVNNI__)
    d->high = (parti)_mm256_dpbusd_avx_epi32((__m256i)d->high, (__m256i)codes, (__m256i)high);
    d->low = (parti)_mm256_dpbusd_avx_epi32((__m256i)d->low, (__m256i)codes, (__m256i)low);
#elif defined(__AVX512BW__)
    d->high = (parti)_mm512_add_epi16((__m512i)d->high, _mm512_maddubs_epi16((__m512i)codes, (__m512i)high));
    d->low = (parti)_mm512_add_epi16((__m512i)d->low, _mm512_maddubs_epi16((__m512i)codes, (__m512i)low));
#else
    d->high = (parti)_mm256_add_epi16((__m256i)d->high, _mm256_maddubs_epi16((__m256i)codes, (__m256i)high));
    d->low = (parti)_mm256_add_epi16((__m256i)d->low, _mm256_maddubs_epi16((__m256i)codes, (__m256i)low));
#endif
}

ALWAYS parti bytes_total(ByteDots d) {
#if BY_BYTES
    return (d.high << 8) + d.low;
#elif defined(__AVX512BW__)
    const __m512i ones = _mm512_set1_epi16(1);
    return ((parti)_mm512_madd_epi16((__m512i)d.high, ones) << 8) + (parti)_mm512_madd_epi16((__m512i)d.low, ones);
#else
    const __m256i ones = _mm256_set1_epi16(1);
    return ((parti)_mm256_madd_epi16((__m256i)d.high, ones) << 8) + (parti)_mm256_madd_epi16((__m256i)d.low, ones);
#endif
}
#endif

#if defined(BY_BYTES) && BY_BYTES
typedef ByteDots Dots;
typedef partu Codes;
ALWAYS Codes unfold(partu codes) { return codes; }
ALWAYS void add_codes(Dots *d, Codes codes, const Input *in, int64_t quad) { add_bytes(d, codes, in, quad); }
ALWAYS parti dots_total(Dots d) { return bytes_total(d); }
#elif defined(BY_BYTES)
typedef struct {
    parti all;
} Dots;
typedef struct {
    partu even, odd; /* columns 0 and 2, columns 1 and 3, as 16 bits */
} Codes;
ALWAYS Codes unfold(partu codes) { return (Codes){codes & 0x00ff00ffu, (codes >> 8) & 0x00ff00ffu}; }
ALWAYS void add_codes(Dots *d, Codes codes, const Input *in, int64_t quad) {
    int32_t pair[2];
    memcpy(pair, in->pairs + 4 * quad, 8);
    parti first = spread_part(pair[0]), second = spread_part(pair[1]);
#ifdef __AVX512BW__
    d->all += (parti)_mm512_madd_epi16((__m512i)codes.even, (__m512i)first);
    d->all += (parti)_mm512_madd_epi16((__m512i)codes.odd, (__m512i)second);
#else
    d->all += (parti)_mm256_madd_epi16((__m256i)codes.even, (__m256i)first);
    d->all += (parti)_mm256_madd_epi16((__m256i)codes.odd, (__m256i)second);
#endif
}
ALWAYS parti dots_total(Dots d) { return d.all; }
#else
typedef struct {
    parti all;
} Dots;
typedef partu Codes;
ALWAYS Codes unfold(partu codes) { return codes; }
ALWAYS void add_codes(Dots *d, Codes codes, const Input *in, int64_t quad) {
    const int16_t *x = in->pairs + 4 * quad;
    d->all += (parti)(codes & 255) * x[0];
    d->all += (parti)((codes >> 8) & 255) * x[2];
    d->all += (parti)((codes >> 16) & 255) * x[1];
    d->all += (parti)(codes >> 24) * x[3];
}
ALWAYS parti dots_total(Dots d) { return d.all; }
typedef Dots ByteDots;
ALWAYS void add_bytes(ByteDots *d, partu codes, const Input *in, int64_t quad) { add_codes(d, codes, in, quad); }
ALWAYS parti bytes_total(ByteDots d) { return d.all; }
#endif

/* 64 columns: 2 x 16 scales (half precision), then 16 lines of 4 columns. */
ALWAYS void panel_int8(const char *w, int64_t columns, const Input *in, int64_t first, v16 *y, const int lines) {
    part sums[MOST_LINES][PARTS];
    for (int b = 0; b < lines; b++)
        for (int p = 0; p < PARTS; p++) sums[b][p] = (part){0};
    for (int64_t c = 0; c < columns; c += 2 * GROUP, w += 64 + 2 * GROUP * LANES)
        for (int g = 0; g < 2; g++)
            for (int p = 0; p < PARTS; p++) {
                const char *group = w + 64 + g * GROUP * LANES;
                Dots dots[MOST_LINES] = {0};
#pragma GCC unroll 8
                for (int k = 0; k < GROUP / 4; k++) {
                    Codes codes = unfold(load_part(group + 64 * k, p));
                    if (p == 0) expect_soon(group + 64 * k);
#pragma GCC unroll 12
                    for (int b = 0; b < lines; b++)
                        add_codes(&dots[b], codes, in, ((first + b) * in->stride + c + GROUP * g) / 4 + k);
                }
                if (g == 0 && p == 0) expect_soon(w);
                part scale = load_half_part(w + 32 * g, p);
#pragma GCC unroll 12
                for (int b = 0; b < lines; b++) {
                    int64_t at = ((first + b) * in->stride + c) / GROUP + g;
                    parti product = dots_total(dots[b]) + in->offset[at];
                    sums[b][p] += __builtin_convertvector(product, part) * (scale * in->scale[at]);
                }
            }
    for (int b = 0; b < lines; b++)
        for (int p = 0; p < PARTS; p++) store_part(&y[b], p, sums[b][p]);
}

/* 32 columns: 16 scales and 16 minima (half precision), then 4 lines of 8 columns: low nibbles 0-3, high nibbles 4-7. */
ALWAYS void panel_int4(const char *w, int64_t columns, const Input *in, int64_t first, v16 *y, const int lines) {
    part sums[MOST_LINES][PARTS];
    for (int b = 0; b < lines; b++)
        for (int p = 0; p < PARTS; p++) sums[b][p] = (part){0};
    for (int64_t c = 0; c < columns; c += GROUP, w += 64 + GROUP * LANES / 2)
        for (int p = 0; p < PARTS; p++) {
            ByteDots dots[MOST_LINES] = {0};
#pragma GCC unroll 4
            for (int k = 0; k < GROUP / 8; k++) {
                partu codes = load_part(w + 64 + 64 * k, p);
                if (p == 0) expect_soon(w + 64 + 64 * k);
                partu low = codes & 0x0f0f0f0fu, high = (codes >> 4) & 0x0f0f0f0fu;
#pragma GCC unroll 12
                for (int b = 0; b < lines; b++) {
                    int64_t quad = ((first + b) * in->stride + c) / 4 + 2 * k;
                    add_bytes(&dots[b], low, in, quad);
                    add_bytes(&dots[b], high, in, quad + 1);
                }
            }
            if (p == 0) expect_soon(w);
            part scale = load_half_part(w, p), minimum = load_half_part(w + 32, p);
#pragma GCC unroll 12
            for (int b = 0; b < lines; b++) {
                int64_t at = ((first + b) * in->stride + c) / GROUP;
                part product = __builtin_convertvector(bytes_total(dots[b]), part);
                sums[b][p] += product * (scale * in->scale[at]) + minimum * in->sum[at];
            }
        }
    for (int b = 0; b < lines; b++)
        for (int p = 0; p < PARTS; p++) store_part(&y[b], p, sums[b][p]);
}

#define CASE(kernel, n) \
    case n: kernel(w, columns, in, first, y, n); break;
#if MOST_LINES > 6
#define LINES_FROM_7(kernel) \
    CASE(kernel, 7) CASE(kernel, 8) CASE(kernel, 9) CASE(kernel, 10) CASE(kernel, 11) CASE(kernel, 12)
#else
#define LINES_FROM_7(kernel)
#endif
#if MOST_LINES > 3
#define LINES_FROM_4(kernel) CASE(kernel, 4) CASE(kernel, 5) CASE(kernel, 6) LINES_FROM_7(kernel)
#else
#define LINES_FROM_4(kernel)
#endif
#define BY_LINES(kernel)                                                                                            \
    static void kernel##_lines(const char *w, int64_t columns, const Input *in, int64_t first, v16 *y, int lines) { \
        switch (lines) { CASE(kernel, 1) CASE(kernel, 2) CASE(kernel, 3) LINES_FROM_4(kernel) }                     \
    }
BY_LINES(panel_float32)
BY_LINES(panel_bfloat16)
BY_LINES(panel_int8)
BY_LINES(panel_int4)

static int64_t panel_bytes(const Matrix *m) {
    switch (m->format) {
        case FLOAT32: return m->columns * LANES * 4;
        case BFLOAT16: return m->columns * LANES * 2;
        case INT8: return m->columns / (2 * GROUP) * (64 + 2 * GROUP * LANES);
        default: return m->columns / GROUP * (64 + GROUP * LANES / 2);
    }
}

/* For at most MOST_LINES lines, from line `first` of the input. */
ALWAYS void panel(const Matrix *m, int64_t index, int64_t bytes, const Input *in, int64_t first, v16 *y, int lines) {
    const char *w = m->data + index * bytes;
    switch (m->format) {
        case FLOAT32: panel_float32_lines(w, m->columns, in, first, y, lines); break;
        case BFLOAT16: panel_bfloat16_lines(w, m->columns, in, first, y, lines); break;
        case INT8: panel_int8_lines(w, m->columns, in, first, y, lines); break;
        default: panel_int4_lines(w, m->columns, in, first, y, lines); break;
    }
    if (m->bias)
        for (int b = 0; b < lines; b++) y[b] += load(m->bias + LANES * index);
}

/* ---- what a product reads ---- */

ALWAYS int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Round lines [begin, end) of x to integers with a scale per group of 32, as matrices of `format` ask for them. */
static void round_input(Input *in, int64_t begin, int64_t end, int64_t columns, int64_t format) {
#ifdef BY_BYTES
    int as_bytes = BY_BYTES || format == INT4;
#else
    int as_bytes = 0;
#endif
    int64_t width = padded(columns, PAD);
    for (int64_t b = begin; b < end; b++)
        for (int64_t c = 0; c < width; c += GROUP) {
            const float *x = in->x + b * in->stride + c;
            v16 part[2] = {load(x), load(x + LANES)};
            v16 size = larger(larger(part[0], -part[0]), larger(part[1], -part[1]));
            float most = largest(size), scale = most / 32512.0f;  /* 127 * 256: the high byte stays within 127 */
            float inverse = most > 0 ? 32512.0f / most : 0;
            int64_t at = (b * in->stride + c) / GROUP;
            v16i all = spread_int(0);
            for (int i = 0; i < 2; i++) {
                v16i q = __builtin_convertvector(nearest(part[i] * inverse), v16i);
                int64_t place = b * in->stride + c + LANES * i;
                all += q;
                if (as_bytes) {
                    v16i low = (v16i)((v16u)q << 24) >> 24;
                    v16b bytes = __builtin_convertvector(low, v16b);
                    memcpy(in->low + place, &bytes, sizeof bytes);
                    bytes = __builtin_convertvector((q - low) >> 8, v16b);
                    memcpy(in->high + place, &bytes, sizeof bytes);
                } else {
                    v16h narrow = __builtin_convertvector(q, v16h);
                    int16_t columns_of[LANES];
                    memcpy(columns_of, &narrow, sizeof narrow);
                    for (int k = 0; k < LANES; k++)  /* columns 0, 2, 1, 3 */
                        in->pairs[place + (k & ~3) + ((k & 1) << 1 | (k & 3) >> 1)] = columns_of[k];
                }
            }
            int32_t sum = total_int(all);
            in->scale[at] = scale;
            in->sum[at] = scale * (float)sum;
            in->offset[at] = -128 * sum;
        }
}
