/* One decode step of a decoder-only transformer, all layers and the head, in a single call.
 *
 * At batch 1 every weight is read once per token and used once, so the step takes as long as memory takes to give the
 * weights. All else has to fit beside that: one fork and one join per token, barriers that spin, each thread reading
 * one contiguous stream per matrix, normalisation and activation done on values that are in the first-level cache.
 *
 * A step may take several new tokens of each row, as judging drafts does: each is a line of its own, with its own slot
 * in the cache, and sees the slots up to it. The weights are read once for all lines.
 *
 * How matrices lie, and how they are multiplied, is in products.h.
 *
 * Built for any CPU with the vector extensions of GCC and Clang.
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "products.h"

#define ATTENTION_TILE 16
#define MOST_QUERIES 4  /* that one reading of keys and values serves */
#define MOST_VECTORS 16  /* of a head */
#define SHORTEST_CHUNK 32
#define LONGEST_CHUNK 128
#define MOST_SPINS 4096
#define LEAST_SPINS 128
#define MORE_SPINS 8
#define SHARED_LINES 16  /* from so many on, threads prepare what they read together */
#define PREFETCH_BYTES 8192  /* of a thread's next matrix, asked for before it waits */

enum { RMS_NORM, LAYER_NORM };
enum { ROPE, LEARNED, ALIBI };
enum { SWIGLU, GELU_BY_TANH, GELU_BY_ERF, RELU, GATED_GELU_BY_TANH, GATED_GELU_BY_ERF, SQUARED_RELU, CLAMPED_SWISH };

typedef struct {
    const float *weight, *bias;  /* [hidden]; no bias: null */
} Norm;

/* Of queries or keys: one for every head, [head_dim] with a stride of 0, or weights of each head's own. No weight: none. */
typedef struct {
    const float *weight, *bias;
    int64_t stride;
} HeadNorm;

typedef struct {
    Norm before_attention;  /* no weight: the residual stream itself is read */
    Matrix qkv, out;
    Norm before_mlp;
    Matrix up, down;  /* up: panels of gate and up take turns where the MLP is gated */
    Norm after_attention, after_mlp;  /* of what is added; no weight: it is added as it is */
    HeadNorm query_norm, key_norm;
    int64_t window;  /* slots that a token sees, its own included; 0: all */
    int64_t turn;    /* which of the model's rotary frequencies; -1: none */
    const float *sinks;      /* [heads], scores that no slot has; or null */
    Matrix router;           /* of a mixture */
    const Matrix *experts;   /* up and down of each, in turns */
} Layer;

typedef struct {
    int64_t vocabulary, hidden, heads, kv_heads, head_dim, intermediate, layers;
    int64_t norm, positions, mlp, threads, idle_spin_ns;
    int64_t rotary;  /* values of a head that turn, from the first */
    int64_t turns;   /* sets of frequencies */
    int64_t parallel;        /* both halves of a layer read the residual stream as it was before the layer */
    int64_t whole_qk_norm;   /* norms of queries and keys are over all heads together */
    int64_t experts, active, renormalised;  /* of a mixture; 0 experts: there is none */
    float norm_epsilon, attention_scale, embedding_scale;
    float score_cap, logit_cap;     /* cap * tanh(x / cap); 0: none */
    float swish_factor, swish_most; /* of a clamped swish */
    const float *rotary_scale;         /* [turns] */
    const float *inverse_frequencies;  /* [turns, rotary / 2] */
    const float *slopes;               /* [heads] of ALiBi */
    const void *embedding;             /* [vocabulary, hidden] */
    const float *position_embedding;   /* [position_rows, hidden] */
    int64_t embedding_bfloat16, position_rows;
    Norm embedding_norm, final_norm;
    const Layer *layer;
    Matrix head;
    const Matrix *matrices;  /* all but the routers, in the order of a step */
} Model;

typedef struct {
    int64_t batch, new, length, capacity, cache_bfloat16;
    int64_t layers;                       /* that are run, from the first */
    int64_t logits_to_keep;                         /* last new tokens of a row that logits are wanted after */
    const int64_t *tokens, *positions;    /* [batch, new] */
    const int64_t *starts;                /* [batch] */
    void *const *keys, *const *values;    /* per layer [batch, kv_heads, capacity, head_dim] */
    float *logits;                        /* [batch, logits_to_keep, vocabulary] */
    float *hidden;                        /* [batch, new, hidden], after the last norm; or null */
} Step;

/* One matrix and many lines: what a prompt asks for. */
typedef struct {
    int64_t matrix;  /* of the model's `matrices` */
    int64_t halves;  /* it is a gated up */
    int64_t lines, columns, rows;
    const float *x;  /* [lines, columns] */
    float *y;        /* [lines, rows]; of a gated up: all of the gate, then all of the rest */
} Product;

/* A line and an expert that it passes through, with what is given counting `weight`. */
typedef struct {
    int64_t line, expert;
    float weight;
} Pair;

typedef struct {
    struct Decoder *decoder;
    int index;
    uint64_t turn;
    int patience;  /* pauses spent on a barrier before sleeping: fewer where they were in vain */
    Input input;     /* of a few lines: all of them, prepared by this thread for itself */
    Input *reads;    /* that, or what all threads share */
    float *queries;  /* [heads per kv head, head_dim] */
    float *scores;   /* [heads per kv head, LONGEST_CHUNK] */
    Pair *pairs, *ranked;  /* [lines * active]: by expert, and as they were ranked */
    int64_t *begins;       /* [experts + 1], of each expert's pairs */
    pthread_t thread;
} Worker;

typedef struct Decoder {
    Model model;
    Step step;
    const Product *product;  /* what is asked for, instead of a step */
    int64_t lines;  /* of the step: batch * new */
    int64_t room;   /* lines that the buffers below can hold */
    int64_t widest; /* padded columns of the widest activation */
    float *residual, *half, *qkv, *middle, *angles, *odds;
    int64_t hidden_stride, qkv_stride, middle_stride, odds_stride;
    Input shared;    /* of many lines: each thread prepares its share of them */
    float *partial;  /* [unit, heads per kv head, head_dim + 2]: sum of weighted values, then largest score, then sum */
    int64_t units, chunk, chunks, partial_room;
    Worker *workers;
    pid_t process;
    int started;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    _Alignas(128) _Atomic uint64_t epoch;
    _Alignas(128) _Atomic uint64_t arrived;
    _Alignas(128) _Atomic uint64_t turn;
    _Alignas(128) _Atomic int sleepers;
    _Atomic int stop;
#ifdef PHASES
    double phase_ns[16], fastest_ns[16];
    double step_began, phase_began, fastest;
#endif
} Decoder;

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

ALWAYS void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ---- activations ---- */

static int is_gated(const Model *m) {
    return m->mlp == SWIGLU || m->mlp == GATED_GELU_BY_TANH || m->mlp == GATED_GELU_BY_ERF || m->mlp == CLAMPED_SWISH;
}
ALWAYS v16 activate(v16 x, int64_t kind) {
    if (kind == SWIGLU) return silu(x);
    if (kind == RELU) return larger(x, spread(0));
    if (kind == SQUARED_RELU) return larger(x, spread(0)) * larger(x, spread(0));
    if (kind == GELU_BY_ERF || kind == GATED_GELU_BY_ERF) {
        float f[LANES];
        store(f, x);
        for (int i = 0; i < LANES; i++) f[i] = 0.5f * f[i] * (1.0f + erff(f[i] * 0.7071067812f));
        return load(f);
    }
    /* 0.5 (1 + tanh u) is the logistic function of 2u */
    return x / (1.0f + exponential(-2.0f * 0.7978845608f * (x + 0.044715f * x * x * x)));
}

ALWAYS v16 join(const Model *m, v16 gate, v16 up) {
    if (m->mlp != CLAMPED_SWISH) return activate(gate, m->mlp) * up;
    v16 most = spread(m->swish_most);
    gate = -larger(-gate, -most);
    up = larger(-larger(-up, -most), -most);
    return (up + 1.0f) * gate / (1.0f + exponential(-m->swish_factor * gate));
}

ALWAYS v16 cap_softly(v16 x, float cap) { return cap - 2.0f * cap / (1.0f + exponential(2.0f / cap * x)); }

/* ---- threads ---- */

/* Sleep until `value` has reached `target`. */
static void sleep_until(Decoder *d, _Atomic uint64_t *value, uint64_t target) {
    pthread_mutex_lock(&d->mutex);
    atomic_fetch_add(&d->sleepers, 1);
    while (atomic_load(value) < target) pthread_cond_wait(&d->wake, &d->mutex);
    atomic_fetch_sub(&d->sleepers, 1);
    pthread_mutex_unlock(&d->mutex);
}

static void advance(Decoder *d, _Atomic uint64_t *value, uint64_t target) {
    atomic_store(value, target);
    if (atomic_load(&d->sleepers)) {
        pthread_mutex_lock(&d->mutex);
        pthread_cond_broadcast(&d->wake);
        pthread_mutex_unlock(&d->mutex);
    }
}

/* Where neighbours hold a core, who waits for long sleeps: the kernel gives a core sooner to who did not use it up. */
static void barrier(Worker *w) {
    Decoder *d = w->decoder;
    if (d->model.threads == 1) return;
    uint64_t turn = ++w->turn;
    if (atomic_fetch_add_explicit(&d->arrived, 1, memory_order_acq_rel) + 1 == turn * (uint64_t)d->model.threads) {
        advance(d, &d->turn, turn);
        return;
    }
    for (int spins = 0; spins < w->patience; spins++) {
        if (atomic_load_explicit(&d->turn, memory_order_acquire) >= turn) {
            if (w->patience < MOST_SPINS) w->patience += MORE_SPINS;
            return;
        }
        relax();
    }
    if (w->patience > LEAST_SPINS) w->patience /= 2;
    sleep_until(d, &d->turn, turn);
}

/* ---- what a product reads ---- */

static void normalise(const Model *m, Norm norm, const float *x, float *y) {
    int64_t n = m->hidden, whole = n / LANES * LANES;
    v16 sum = spread(0), squares = spread(0);
    float rest = 0, rest_squares = 0, mean = 0;
    if (m->norm == LAYER_NORM) {
        for (int64_t c = 0; c < whole; c += LANES) sum += load(x + c);
        for (int64_t c = whole; c < n; c++) rest += x[c];
        mean = (total(sum) + rest) / (float)n;
    }
    for (int64_t c = 0; c < whole; c += LANES) {
        v16 v = load(x + c) - mean;
        squares += v * v;
    }
    for (int64_t c = whole; c < n; c++) rest_squares += (x[c] - mean) * (x[c] - mean);
    float factor = 1.0f / sqrtf((total(squares) + rest_squares) / (float)n + m->norm_epsilon);
    for (int64_t c = 0; c < whole; c += LANES) {
        v16 v = (load(x + c) - mean) * factor * load(norm.weight + c);
        store(y + c, norm.bias ? v + load(norm.bias + c) : v);
    }
    for (int64_t c = whole; c < n; c++)
        y[c] = (x[c] - mean) * factor * norm.weight[c] + (norm.bias ? norm.bias[c] : 0);
}

ALWAYS void share(const Worker *w, int64_t units, int64_t *begin, int64_t *end) {
    int64_t threads = w->decoder->model.threads;
    *begin = units * w->index / threads;
    *end = units * (w->index + 1) / threads;
}

/* Where `lines` lines go that a product reads, and which of them [begin, end) this thread prepares. */
static Input *begin_reading(Worker *w, int64_t lines, int64_t *begin, int64_t *end) {
    *begin = 0, *end = lines;
    if (lines < SHARED_LINES || w->decoder->model.threads == 1) return w->reads = &w->input;
    share(w, lines, begin, end);
    return w->reads = &w->decoder->shared;
}

/* Lines [begin, end) are there as floats, of `columns` each; products of `format` may read after this. */
static void end_reading(Worker *w, int64_t begin, int64_t end, int64_t columns, int64_t format) {
    Input *in = w->reads;
    for (int64_t b = begin; b < end; b++)
        memset(in->x + b * in->stride + columns, 0, sizeof(float) * (size_t)(padded(columns, PAD) - columns));
    if (format >= INT8) round_input(in, begin, end, columns, format);
    if (in == &w->decoder->shared) barrier(w);
}

/* The last `logits_to_keep` lines of every row, normalised. Returns how many lines that are. */
static int64_t read_normalised(Worker *w, Norm norm, int64_t format, int64_t logits_to_keep) {
    const Decoder *d = w->decoder;
    int64_t begin, end, lines = d->step.batch * logits_to_keep, hidden = d->model.hidden;
    Input *in = begin_reading(w, lines, &begin, &end);
    for (int64_t b = begin; b < end; b++) {
        float *y = in->x + b * in->stride;
        int64_t line = b / logits_to_keep * d->step.new + d->step.new - logits_to_keep + b % logits_to_keep;
        const float *x = d->residual + line * d->hidden_stride;
        if (norm.weight)
            normalise(&d->model, norm, x, y);
        else
            memcpy(y, x, sizeof(float) * (size_t)hidden);
    }
    end_reading(w, begin, end, hidden, format);
    return lines;
}

static void read_middle(Worker *w, int64_t lines, int64_t format) {
    const Decoder *d = w->decoder;
    int64_t begin, end, columns = d->model.intermediate;
    Input *in = begin_reading(w, lines, &begin, &end);
    for (int64_t b = begin; b < end; b++)
        memcpy(in->x + b * in->stride, d->middle + b * d->middle_stride, sizeof(float) * (size_t)columns);
    end_reading(w, begin, end, columns, format);
}

/* ---- the phases of a step; a thread does its share of each ---- */

/* Weights that this thread reads next are asked for before it waits, so that memory is not idle while it does. */
static void prefetch(const Worker *w, const Matrix *m, int64_t panels_per_unit) {
    int64_t begin, end, bytes = panel_bytes(m) * panels_per_unit;
    share(w, padded(m->rows, LANES) / LANES / panels_per_unit, &begin, &end);
    const char *p = m->data + begin * bytes;
    int64_t ahead = (end - begin) * bytes < PREFETCH_BYTES ? (end - begin) * bytes : PREFETCH_BYTES;
    for (int64_t i = 0; i < ahead; i += 64) __builtin_prefetch(p + i, 0, 2);
}

/* to[line][row of the matrix], for the first `columns` rows. */
static void project_to(Worker *w, const Matrix *m, int64_t lines, float *to, int64_t stride, int64_t columns) {
    int64_t begin, end, bytes = panel_bytes(m);
    share(w, padded(m->rows, LANES) / LANES, &begin, &end);
    for (int64_t p = begin; p < end; p++)
        for (int64_t b = 0, n; b < lines; b += n) {
            v16 y[MOST_LINES];
            n = at_once(lines - b);
            panel(m, p, bytes, w->reads, b, y, (int)n);
            int64_t width = columns - p * LANES < LANES ? columns - p * LANES : LANES;
            for (int i = 0; i < n; i++)
                memcpy(to + (b + i) * stride + p * LANES, &y[i], sizeof(float) * (size_t)width);
        }
}

static void add_to_residual(Worker *w, const Matrix *m) {
    Decoder *d = w->decoder;
    int64_t begin, end, bytes = panel_bytes(m);
    share(w, padded(m->rows, LANES) / LANES, &begin, &end);
    for (int64_t p = begin; p < end; p++)
        for (int64_t b = 0, n; b < d->lines; b += n) {
            v16 y[MOST_LINES];
            n = at_once(d->lines - b);
            panel(m, p, bytes, w->reads, b, y, (int)n);
            for (int i = 0; i < n; i++) {
                float *to = d->residual + (b + i) * d->hidden_stride + p * LANES;
                store(to, load(to) + y[i]);
            }
        }
}

/* Lines [first, last) of what is read, up to the width in the middle. */
static void expand(Worker *w, const Matrix *m, int64_t first, int64_t last) {
    Decoder *d = w->decoder;
    int gated = is_gated(&d->model);
    int64_t begin, end, bytes = panel_bytes(m);
    share(w, padded(d->model.intermediate, LANES) / LANES, &begin, &end);
    for (int64_t p = begin; p < end; p++)
        for (int64_t b = first, lines; b < last; b += lines) {
            v16 y[MOST_LINES], up[MOST_LINES];
            lines = at_once(last - b);
            if (gated) {
                panel(m, 2 * p, bytes, w->reads, b, y, (int)lines);
                panel(m, 2 * p + 1, bytes, w->reads, b, up, (int)lines);
            } else {
                panel(m, p, bytes, w->reads, b, y, (int)lines);
            }
            for (int i = 0; i < lines; i++)
                store(d->middle + (b + i) * d->middle_stride + p * LANES, gated ? join(&d->model, y[i], up[i]) : activate(y[i], d->model.mlp));
        }
}

/* The half of a layer that `m` ends, with a norm behind it. */
static void add_normalised(Worker *w, const Matrix *m, Norm norm) {
    Decoder *d = w->decoder;
    int64_t begin, end, hidden = d->model.hidden;
    project_to(w, m, d->lines, d->half, d->hidden_stride, hidden);
    barrier(w);
    share(w, d->lines, &begin, &end);
    for (int64_t b = begin; b < end; b++) {
        float *half = d->half + b * d->hidden_stride, *to = d->residual + b * d->hidden_stride;
        normalise(&d->model, norm, half, half);
        for (int64_t c = 0; c < hidden; c++) to[c] += half[c];
    }
}

/* What attention gave, kept apart until the other half had read the residual stream: a thread adds what it projected. */
static void add_kept(Worker *w) {
    Decoder *d = w->decoder;
    int64_t begin, end;
    share(w, padded(d->model.hidden, LANES) / LANES, &begin, &end);
    for (int64_t b = 0; b < d->lines; b++)
        for (int64_t c = begin * LANES; c < end * LANES; c += LANES) {
            float *to = d->residual + b * d->hidden_stride + c;
            store(to, load(to) + load(d->half + b * d->hidden_stride + c));
        }
}

/* ---- mixtures: each line passes through the experts that its router ranks first, and only those are read ---- */

/* The pairs of all lines, by expert, from the routers' scores; every thread works them out for itself. */
static void route(Worker *w) {
    const Decoder *d = w->decoder;
    const Model *m = &d->model;
    int64_t *begins = w->begins, count = d->lines * m->active;
    memset(begins, 0, sizeof(int64_t) * (size_t)(m->experts + 1));
    for (int64_t line = 0; line < d->lines; line++) {
        const float *score = d->odds + line * d->odds_stride;
        Pair *own = w->ranked + line * m->active;
        float peak = score[0], all = 0, chosen = 0;
        for (int64_t e = 1; e < m->experts; e++) peak = score[e] > peak ? score[e] : peak;
        for (int64_t e = 0; e < m->experts; e++) all += expf(score[e] - peak);
        for (int64_t k = 0; k < m->active; k++) {
            int64_t best = -1;
            for (int64_t e = 0; e < m->experts; e++) {
                int taken = 0;
                for (int64_t before = 0; before < k; before++) taken |= own[before].expert == e;
                if (!taken && (best < 0 || score[e] > score[best])) best = e;
            }
            own[k] = (Pair){line, best, expf(score[best] - peak)};
            chosen += own[k].weight;
            begins[best + 1]++;
        }
        for (int64_t k = 0; k < m->active; k++) own[k].weight /= m->renormalised ? chosen : all;
    }
    for (int64_t e = 0; e < m->experts; e++) begins[e + 1] += begins[e];
    for (int64_t i = count - 1; i >= 0; i--) {  /* from the last, so that ends become begins */
        const Pair *pair = &w->ranked[i];
        w->pairs[--begins[pair->expert + 1]] = *pair;
    }
    memmove(begins, begins + 1, sizeof(int64_t) * (size_t)m->experts);
    begins[m->experts] = count;
}

static void read_routed(Worker *w, Norm norm, int64_t format) {
    const Decoder *d = w->decoder;
    int64_t begin, end;
    Input *in = begin_reading(w, d->lines * d->model.active, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        normalise(&d->model, norm, d->residual + w->pairs[i].line * d->hidden_stride, in->x + i * in->stride);
    end_reading(w, begin, end, d->model.hidden, format);
}

/* What an expert gives to lines of its pairs [first, last), weighed. */
static void add_weighed(Worker *w, const Matrix *m, int64_t first, int64_t last) {
    Decoder *d = w->decoder;
    int64_t begin, end, bytes = panel_bytes(m);
    share(w, padded(m->rows, LANES) / LANES, &begin, &end);
    for (int64_t p = begin; p < end; p++)
        for (int64_t b = first, n; b < last; b += n) {
            v16 y[MOST_LINES];
            n = at_once(last - b);
            panel(m, p, bytes, w->reads, b, y, (int)n);
            for (int i = 0; i < n; i++) {
                float *to = d->residual + w->pairs[b + i].line * d->hidden_stride + p * LANES;
                store(to, load(to) + w->pairs[b + i].weight * y[i]);
            }
        }
}

static void think_with_experts(Worker *w, const Layer *layer) {
    Decoder *d = w->decoder;
    const Model *m = &d->model;
    read_normalised(w, layer->before_mlp, FLOAT32, d->step.new);
    project_to(w, &layer->router, d->lines, d->odds, d->odds_stride, m->experts);
    barrier(w);
    route(w);
    read_routed(w, layer->before_mlp, layer->experts[0].format);
    for (int64_t e = 0; e < m->experts; e++)
        if (w->begins[e] < w->begins[e + 1]) expand(w, &layer->experts[2 * e], w->begins[e], w->begins[e + 1]);
    barrier(w);
    read_middle(w, d->lines * m->active, layer->experts[1].format);
    for (int64_t e = 0; e < m->experts; e++)
        if (w->begins[e] < w->begins[e + 1]) add_weighed(w, &layer->experts[2 * e + 1], w->begins[e], w->begins[e + 1]);
}

/* The norm of one of `heads` heads, that are one after the other at `all`. */
static void normalise_head(const Model *m, const HeadNorm *norm, const float *all, int64_t heads, int64_t head, float *y) {
    const float *x = all + head * m->head_dim, *over = m->whole_qk_norm ? all : x, *weight = norm->weight + head * norm->stride;
    int64_t count = m->whole_qk_norm ? heads * m->head_dim : m->head_dim;
    float mean = 0, sum = 0;
    if (m->norm == LAYER_NORM)
        for (int64_t i = 0; i < count; i++) mean += over[i] / (float)count;
    for (int64_t i = 0; i < count; i++) sum += (over[i] - mean) * (over[i] - mean);
    float factor = 1.0f / sqrtf(sum / (float)count + m->norm_epsilon);
    for (int64_t i = 0; i < m->head_dim; i++) y[i] = (x[i] - mean) * factor * weight[i] + (norm->bias ? norm->bias[i] : 0);
}

static void rotate(const Model *m, float *to, const float *from, const float *angles, float scale) {
    int64_t half = m->rotary / 2;
    for (int64_t i = m->rotary; i < m->head_dim; i++) to[i] = from[i] * scale;
    for (int64_t i = 0; i < half; i++) {
        float c = angles[i], s = angles[half + i], a = from[i], b = from[half + i];
        to[i] = (a * c - b * s) * scale;
        to[half + i] = (b * c + a * s) * scale;
    }
}

ALWAYS v16 load_cached(const char *p, int64_t index, int bfloat16) {
    return bfloat16 ? load_bfloat16(p + 2 * index) : load((const float *)p + index);
}

/* Scores of `queries` queries, from the first at `q`, over positions [begin, end) of one row's key/value head. The values
 * of the same positions, and keys further on, are asked for meanwhile. */
ALWAYS void score(Worker *w, const char *keys, const char *values, int64_t begin, int64_t end, int64_t start,
                  const float *slopes, int64_t q, const int queries, const int64_t vectors, const int bfloat16) {
    const int64_t head_dim = LANES * vectors, bytes = head_dim * (bfloat16 ? 2 : 4);
    v16 query[MOST_QUERIES][MOST_VECTORS];
    for (int i = 0; i < queries; i++)
        for (int64_t v = 0; v < vectors; v++) query[i][v] = load(w->queries + (q + i) * head_dim + LANES * v);
    for (int64_t tile = begin; tile < end; tile += ATTENTION_TILE) {
        v16 dots[MOST_QUERIES][ATTENTION_TILE];
        for (int64_t i = 0; i < ATTENTION_TILE; i++) {
            int64_t at = (tile + i < end ? tile + i : end - 1) * head_dim;
            if (q == 0)
                for (int64_t line = 0; line < bytes; line += 64) {
                    const int64_t place = at * (bfloat16 ? 2 : 4) + line;
                    __builtin_prefetch(values + place, 0, 3);
                    __builtin_prefetch(keys + place + AHEAD, 0, 3);
                }
            v16 key = load_cached(keys, at, bfloat16);
            for (int j = 0; j < queries; j++) dots[j][i] = query[j][0] * key;
            for (int64_t v = 1; v < vectors; v++) {
                key = load_cached(keys, at + LANES * v, bfloat16);
                for (int j = 0; j < queries; j++) dots[j][i] += query[j][v] * key;
            }
        }
        v16i position = (v16i){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (int32_t)tile;
        for (int j = 0; j < queries; j++) {
            v16 all = sums(dots[j]);
            if (slopes) all += slopes[q + j] * __builtin_convertvector(position - (int32_t)start, v16);
            all = choose(position < (int32_t)end, all, spread(-INFINITY));
            store(w->scores + (q + j) * LONGEST_CHUNK + (tile - begin), all);
        }
    }
}

static void cap_scores(float *score, int64_t count, float cap) {
    for (int64_t i = 0; i < count; i += LANES) {
        v16 x = load(score + i);
        store(score + i, choose(x > -INFINITY, cap_softly(x, cap), x));
    }
}

/* Scores to weights, not yet divided by their sum; returns the largest score and the sum. */
ALWAYS void soften(float *score, int64_t count, float *peak, float *sum) {
    v16 most = spread(-INFINITY), all = spread(0);
    for (int64_t i = 0; i < count; i += LANES) most = larger(most, load(score + i));
    *peak = largest(most);
    for (int64_t i = 0; i < count; i += LANES) {
        v16 weight = exponential(load(score + i) - *peak);
        all += weight;
        store(score + i, weight);
    }
    *sum = total(all);
}

/* Values of positions [begin, end), weighted, for `queries` queries from the first at `q`. */
ALWAYS void mix(Worker *w, const char *values, int64_t begin, int64_t end, float *partial, int64_t q, const int queries,
                const int64_t vectors, const int bfloat16) {
    const int64_t head_dim = LANES * vectors;
    v16 out[MOST_QUERIES][MOST_VECTORS];
    for (int j = 0; j < queries; j++)
        for (int64_t v = 0; v < vectors; v++) out[j][v] = spread(0);
    for (int64_t i = 0; i < end - begin; i++)
        for (int64_t v = 0; v < vectors; v++) {
            v16 value = load_cached(values, (begin + i) * head_dim + LANES * v, bfloat16);
            for (int j = 0; j < queries; j++) out[j][v] += w->scores[(q + j) * LONGEST_CHUNK + i] * value;
        }
    for (int j = 0; j < queries; j++)
        for (int64_t v = 0; v < vectors; v++) store(partial + (q + j) * (head_dim + 2) + LANES * v, out[j][v]);
}

/* One line, one key/value head, positions [begin, end): all queries of that head, `at_once` with one reading. */
ALWAYS void attend(Worker *w, const char *keys, const char *values, int64_t begin, int64_t end, int64_t start,
                   const float *slopes, float *partial, const int64_t vectors, const int bfloat16, const int at_once) {
    const Model *m = &w->decoder->model;
    int64_t queries = m->heads / m->kv_heads, q;
    for (q = 0; q + at_once <= queries; q += at_once)
        score(w, keys, values, begin, end, start, slopes, q, at_once, vectors, bfloat16);
    for (; q < queries; q++) score(w, keys, values, begin, end, start, slopes, q, 1, vectors, bfloat16);
    for (q = 0; q < queries; q++) {
        float *after = partial + q * (LANES * vectors + 2) + LANES * vectors;
        if (m->score_cap > 0) cap_scores(w->scores + q * LONGEST_CHUNK, end - begin, m->score_cap);
        soften(w->scores + q * LONGEST_CHUNK, end - begin, after, after + 1);
    }
    for (q = 0; q + at_once <= queries; q += at_once)
        mix(w, values, begin, end, partial, q, at_once, vectors, bfloat16);
    for (; q < queries; q++) mix(w, values, begin, end, partial, q, 1, vectors, bfloat16);
}

/* The keys and values of one line and key/value head, into the line's slot of the cache. */
static void keep(const Decoder *d, int64_t layer, int64_t line, int64_t head) {
    const Model *m = &d->model;
    const Step *s = &d->step;
    int64_t head_dim = m->head_dim, slot = s->length + line % s->new;
    int64_t first = ((line / s->new * m->kv_heads + head) * s->capacity + slot) * head_dim;
    const Layer *own = &m->layer[layer];
    const float *all = d->qkv + line * d->qkv_stride + m->heads * head_dim;
    const float *key = all + head * head_dim, *value = key + m->kv_heads * head_dim;
    float rotated[LANES * MOST_VECTORS], normal[LANES * MOST_VECTORS];
    if (own->key_norm.weight) {
        normalise_head(m, &own->key_norm, all, m->kv_heads, head, normal);
        key = normal;
    }
    if (own->turn >= 0) {
        rotate(m, rotated, key, d->angles + (line * m->turns + own->turn) * head_dim, 1.0f);
        key = rotated;
    }
    for (int64_t i = 0; i < head_dim; i += LANES)
        if (s->cache_bfloat16) {
            store_bfloat16((char *)s->keys[layer] + 2 * (first + i), load(key + i));
            store_bfloat16((char *)s->values[layer] + 2 * (first + i), load(value + i));
        } else {
            store((float *)s->keys[layer] + first + i, load(key + i));
            store((float *)s->values[layer] + first + i, load(value + i));
        }
}

static void keep_share(Worker *w, int64_t layer) {
    int64_t begin, end, heads = w->decoder->model.kv_heads;
    share(w, w->decoder->lines * heads, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) keep(w->decoder, layer, unit / heads, unit % heads);
}

static void attend_share(Worker *w, int64_t layer) {
    Decoder *d = w->decoder;
    const Model *m = &d->model;
    const Layer *own = &m->layer[layer];
    const Step *s = &d->step;
    int64_t begin, end, queries = m->heads / m->kv_heads, head_dim = m->head_dim;
    int64_t size = s->cache_bfloat16 ? 2 : 4;
    share(w, d->units, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t chunk = unit % d->chunks, head = unit / d->chunks % m->kv_heads, line = unit / d->chunks / m->kv_heads;
        int64_t row = line / s->new, seen = s->length + line % s->new + 1, start = s->starts[row];
        if (own->window > 0 && seen - own->window > start) start = seen - own->window;
        int64_t from = chunk * d->chunk, to = from + d->chunk;
        if (from < start) from = start;
        if (to > seen) to = seen;
        float *partial = d->partial + unit * queries * (head_dim + 2);
        if (from >= to) {
            for (int64_t q = 0; q < queries; q++, partial += head_dim + 2) {
                memset(partial, 0, sizeof(float) * (size_t)(head_dim + 2));
                partial[head_dim] = -INFINITY;
            }
            continue;
        }
        const float *qkv = d->qkv + line * d->qkv_stride, *angles = d->angles + (line * m->turns + (own->turn > 0 ? own->turn : 0)) * head_dim;
        int64_t plane = (row * m->kv_heads + head) * s->capacity * head_dim;
        char *keys = (char *)s->keys[layer] + plane * size, *values = (char *)s->values[layer] + plane * size;
        for (int64_t q = 0; q < queries; q++) {
            const float *query = qkv + (head * queries + q) * head_dim;
            float normal[LANES * MOST_VECTORS];
            if (own->query_norm.weight) {
                normalise_head(m, &own->query_norm, qkv, m->heads, head * queries + q, normal);
                query = normal;
            }
            if (own->turn >= 0)
                rotate(m, w->queries + q * head_dim, query, angles, m->attention_scale);
            else
                for (int64_t i = 0; i < head_dim; i++) w->queries[q * head_dim + i] = query[i] * m->attention_scale;
        }
        if (s->new == 1 && to == seen) keep(d, layer, line, head);  /* nobody else reads the new slot in this step */
        const float *slopes = m->positions == ALIBI ? m->slopes + head * queries : NULL;
        int64_t vectors = head_dim / LANES, base = s->starts[row];
#define ATTEND(vectors, bfloat16, at_once) \
    attend(w, keys, values, from, to, base, slopes, partial, vectors, bfloat16, at_once)
        if (vectors == 4 && queries % 4 && queries % 3 == 0)
            s->cache_bfloat16 ? ATTEND(4, 1, 3) : ATTEND(4, 0, 3);
        else if (vectors == 4)
            s->cache_bfloat16 ? ATTEND(4, 1, 4) : ATTEND(4, 0, 4);
        else if (vectors == 8)
            s->cache_bfloat16 ? ATTEND(8, 1, 2) : ATTEND(8, 0, 2);
        else
            s->cache_bfloat16 ? ATTEND(vectors, 1, 1) : ATTEND(vectors, 0, 1);
    }
}

/* The chunks' partial sums, brought to one scale: what the output projection reads. */
static void read_attended(Worker *w, const float *sinks, int64_t format) {
    const Decoder *d = w->decoder;
    const Model *m = &d->model;
    int64_t queries = m->heads / m->kv_heads, width = m->head_dim + 2, columns = m->heads * m->head_dim;
    int64_t begin, end;
    Input *in = begin_reading(w, d->lines, &begin, &end);
    for (int64_t line = begin; line < end; line++) {
        float *to = in->x + line * in->stride;
        for (int64_t head = 0; head < m->heads; head++, to += m->head_dim) {
            int64_t unit = (line * m->kv_heads + head / queries) * d->chunks;
            const float *first = d->partial + (unit * queries + head % queries) * width;
            int64_t next = queries * width;
            float peak = sinks ? sinks[head] : -INFINITY, sum = 0;
            for (int64_t c = 0; c < d->chunks; c++)
                if (first[c * next + m->head_dim] > peak) peak = first[c * next + m->head_dim];
            for (int64_t i = 0; i < m->head_dim; i += LANES) store(to + i, spread(0));
            if (peak == -INFINITY) continue;  /* a line of padding sees no slot */
            if (sinks) sum = expf(sinks[head] - peak);
            for (int64_t c = 0; c < d->chunks; c++) {
                const float *part = first + c * next;
                float factor = expf(part[m->head_dim] - peak);
                sum += factor * part[m->head_dim + 1];
                for (int64_t i = 0; i < m->head_dim; i += LANES) store(to + i, load(to + i) + factor * load(part + i));
            }
            for (int64_t i = 0; i < m->head_dim; i += LANES) store(to + i, load(to + i) * (1.0f / sum));
        }
    }
    end_reading(w, begin, end, columns, format);
}

#ifdef PHASES
#define PHASE(i)                                                   \
    if (w->index == 0) {                                           \
        double now = now_ns();                                     \
        w->decoder->phase_ns[i] += now - w->decoder->phase_began;  \
        w->decoder->phase_began = now;                             \
    }
#else
#define PHASE(i)
#endif

/* Those that this thread has projected. */
static void cap_logits(Worker *w, int64_t lines) {
    const Model *m = &w->decoder->model;
    int64_t begin, end;
    share(w, padded(m->vocabulary, LANES) / LANES, &begin, &end);
    for (int64_t b = 0; b < lines; b++)
        for (int64_t c = begin * LANES; c < end * LANES; c += LANES) {
            float *at = w->decoder->step.logits + b * m->vocabulary + c, some[LANES] = {0};
            size_t bytes = sizeof(float) * (size_t)(m->vocabulary - c < LANES ? m->vocabulary - c : LANES);
            memcpy(some, at, bytes);
            store(some, cap_softly(load(some), m->logit_cap));
            memcpy(at, some, bytes);
        }
}

static void think(Worker *w, const Layer *layer) {
    Decoder *d = w->decoder;
    read_normalised(w, layer->before_mlp, layer->up.format, d->step.new);
    PHASE(8)
    expand(w, &layer->up, 0, d->lines);
    PHASE(9)
    prefetch(w, &layer->down, 1);
    barrier(w);
    PHASE(10)
    read_middle(w, d->lines, layer->down.format);
    PHASE(11)
    if (layer->after_mlp.weight)
        add_normalised(w, &layer->down, layer->after_mlp);
    else
        add_to_residual(w, &layer->down);
    if (d->model.parallel) add_kept(w);
}

/* What the head reads, of every line. */
static void write_hidden(Worker *w) {
    const Decoder *d = w->decoder;
    int64_t begin, end, hidden = d->model.hidden;
    share(w, d->lines, &begin, &end);
    for (int64_t b = begin; b < end; b++)
        normalise(&d->model, d->model.final_norm, d->residual + b * d->hidden_stride, d->step.hidden + b * hidden);
}

static void work(Worker *w) {
    Decoder *d = w->decoder;
    const Model *m = &d->model;
    int64_t gate = is_gated(m) ? 2 : 1;
    for (int64_t i = 0; i < d->step.layers; i++) {
        const Layer *layer = &m->layer[i];
        read_normalised(w, layer->before_attention, layer->qkv.format, d->step.new);
        PHASE(0)
        project_to(w, &layer->qkv, d->lines, d->qkv, d->qkv_stride, layer->qkv.rows);
        PHASE(1)
        prefetch(w, &layer->out, 1);
        barrier(w);
        if (d->step.new > 1) {  /* a line reads the slots of the lines before it */
            keep_share(w, i);
            barrier(w);
        }
        PHASE(2)
        attend_share(w, i);
        PHASE(3)
        barrier(w);
        PHASE(4)
        read_attended(w, layer->sinks, layer->out.format);
        PHASE(5)
        if (m->parallel)
            project_to(w, &layer->out, d->lines, d->half, d->hidden_stride, m->hidden);
        else if (layer->after_attention.weight)
            add_normalised(w, &layer->out, layer->after_attention);
        else
            add_to_residual(w, &layer->out);
        PHASE(6)
        m->experts ? prefetch(w, &layer->router, 1) : prefetch(w, &layer->up, gate);
        barrier(w);
        PHASE(7)
        m->experts ? think_with_experts(w, layer) : think(w, layer);
        PHASE(12)
        prefetch(w, i + 1 < d->step.layers ? &m->layer[i + 1].qkv : &m->head, 1);
        barrier(w);
        PHASE(13)
    }
    if (d->step.hidden) write_hidden(w);
    if (d->step.logits_to_keep) {
        int64_t lines = read_normalised(w, m->final_norm, m->head.format, d->step.logits_to_keep);
        project_to(w, &m->head, lines, d->step.logits, m->vocabulary, m->vocabulary);
        if (m->logit_cap > 0) cap_logits(w, lines);
    }
    PHASE(14)
    barrier(w);
    PHASE(15)
}

/* Many lines make a product a matter of operations: the panel is in cache when the second line comes to it. */
static void multiply(Worker *w) {
    Decoder *d = w->decoder;
    const Product *p = d->product;
    const Matrix *m = &d->model.matrices[p->matrix];
    Input *in = &d->shared;
    int64_t begin, end, width = padded(p->columns, PAD), bytes = panel_bytes(m);
    int halves = (int)p->halves;
    share(w, p->lines, &begin, &end);
    for (int64_t b = begin; b < end; b++) {
        memcpy(in->x + b * in->stride, p->x + b * p->columns, sizeof(float) * (size_t)p->columns);
        memset(in->x + b * in->stride + p->columns, 0, sizeof(float) * (size_t)(width - p->columns));
    }
    if (m->format >= INT8) round_input(in, begin, end, p->columns, m->format);
    barrier(w);
    share(w, padded(m->rows, LANES) / LANES, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t half = halves ? p->rows / 2 : p->rows, row = halves ? i / 2 * LANES : i * LANES;
        int64_t wide = half - row < LANES ? half - row : LANES;
        float *to = p->y + row + (halves && i % 2 ? half : 0);
        for (int64_t b = 0, n; b < p->lines; b += n) {
            v16 y[MOST_LINES];
            n = at_once(p->lines - b);
            panel(m, i, bytes, in, b, y, (int)n);
            for (int k = 0; k < n; k++)
                memcpy(to + (b + k) * p->rows, &y[k], sizeof(float) * (size_t)wide);
        }
    }
    barrier(w);
}

/* Between tokens a thread looks for the next one for a moment, then sleeps: an idle decoder takes no core. */
static void *serve(void *argument) {
    Worker *w = argument;
    Decoder *d = w->decoder;
    for (uint64_t epoch = 1;; epoch++) {
        double until = now_ns() + (double)d->model.idle_spin_ns;
        for (int spins = 1; atomic_load_explicit(&d->epoch, memory_order_acquire) < epoch; spins++) {
            relax();
            if (spins % 256 == 0 && now_ns() > until) break;
        }
        if (atomic_load_explicit(&d->epoch, memory_order_acquire) < epoch) sleep_until(d, &d->epoch, epoch);
        if (atomic_load(&d->stop)) return NULL;
        d->product ? multiply(w) : work(w);
    }
}

static void stop_threads(Decoder *d) {
    if (d->started && d->process == getpid()) {  /* a forked child has none of them */
        atomic_store(&d->stop, 1);
        advance(d, &d->epoch, d->epoch + 1);
        for (int i = 1; i <= d->started; i++) pthread_join(d->workers[i].thread, NULL);
    }
    d->started = 0;
}

/* Threads inherit the caller's cores. Signals are Python's business. */
static int start_threads(Decoder *d) {
    sigset_t all, before;
    pthread_mutex_init(&d->mutex, NULL);
    pthread_cond_init(&d->wake, NULL);
    atomic_store(&d->epoch, 0);
    atomic_store(&d->arrived, 0);
    atomic_store(&d->turn, 0);
    atomic_store(&d->sleepers, 0);
    atomic_store(&d->stop, 0);
    d->process = getpid();
    d->started = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 0; i < d->model.threads; i++) {
        d->workers[i].turn = 0;
        d->workers[i].patience = MOST_SPINS;
        if (i && pthread_create(&d->workers[i].thread, NULL, serve, &d->workers[i])) break;
        d->started = i;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (d->started == d->model.threads - 1) return 0;
    stop_threads(d);
    return -1;
}

/* ---- what Python calls ---- */

static void *aligned_zeros(int64_t bytes) {
    void *p = NULL;
    bytes = padded(bytes > 0 ? bytes : 1, 128);
    if (posix_memalign(&p, 128, (size_t)bytes)) return NULL;
    return memset(p, 0, (size_t)bytes);
}

static void free_input(Input *in) {
    free(in->x), free(in->high), free(in->low), free(in->pairs), free(in->scale), free(in->sum), free(in->offset);
    memset(in, 0, sizeof *in);
}

/* Room for `lines` activations of `stride` columns. Returns 0, or -1 where memory is exhausted. */
static int make_input(Input *in, int64_t lines, int64_t stride) {
    if (lines <= in->lines) return 0;
    free_input(in);
    in->stride = stride;
    in->x = aligned_zeros(4 * lines * stride);
    in->high = aligned_zeros(lines * stride);
    in->low = aligned_zeros(lines * stride);
    in->pairs = aligned_zeros(2 * lines * stride);
    in->scale = aligned_zeros(4 * lines * stride / GROUP);
    in->sum = aligned_zeros(4 * lines * stride / GROUP);
    in->offset = aligned_zeros(4 * lines * stride / GROUP);
    if (!in->x || !in->high || !in->low || !in->pairs || !in->scale || !in->sum || !in->offset) return -1;
    in->lines = lines;
    return 0;
}

static void free_room(Decoder *d) {
    free(d->residual), free(d->half), free(d->qkv), free(d->middle), free(d->angles), free(d->odds);
    d->residual = d->half = d->qkv = d->middle = d->angles = d->odds = NULL;
    for (int64_t i = 0; d->workers && i < d->model.threads; i++) {
        free(d->workers[i].pairs), free(d->workers[i].ranked);
        d->workers[i].pairs = d->workers[i].ranked = NULL;
    }
}

/* Room for a step of `lines` lines. Returns 0, or -1 where memory is exhausted. */
static int make_room(Decoder *d, int64_t lines) {
    if (lines <= d->room) return 0;
    d->room = 0;
    free_room(d);
    int64_t active = d->model.experts ? d->model.active : 1;
    d->residual = aligned_zeros(4 * lines * d->hidden_stride);
    d->half = aligned_zeros(4 * lines * d->hidden_stride);
    d->qkv = aligned_zeros(4 * lines * d->qkv_stride);
    d->middle = aligned_zeros(4 * lines * active * d->middle_stride);
    d->angles = aligned_zeros(4 * lines * d->model.turns * d->model.head_dim);
    d->odds = aligned_zeros(4 * lines * d->odds_stride);
    int short_of = !d->residual || !d->half || !d->qkv || !d->middle || !d->angles || !d->odds;
    for (int64_t i = 0; i < d->model.threads; i++) {
        Worker *w = &d->workers[i];
        w->pairs = aligned_zeros((int64_t)sizeof(Pair) * lines * active);
        w->ranked = aligned_zeros((int64_t)sizeof(Pair) * lines * active);
        int64_t own = d->model.threads > 1 && lines * active > SHARED_LINES ? SHARED_LINES : lines * active;
        short_of |= !w->pairs || !w->ranked || make_input(&w->input, own, d->widest);
    }
    if (d->model.threads > 1 && lines * active >= SHARED_LINES)
        short_of |= make_input(&d->shared, lines * active, d->widest);
    if (short_of) return -1;
    d->room = lines;
    return 0;
}

/* How the attention of a step is cut into units: enough of them to share, none shorter than pays. */
static int cut_attention(Decoder *d) {
    const Model *m = &d->model;
    int64_t positions = d->step.length + d->step.new, planes = d->lines * m->kv_heads;
    int64_t chunk = padded((positions * planes + 4 * m->threads - 1) / (4 * m->threads), ATTENTION_TILE);
    d->chunk = chunk < SHORTEST_CHUNK ? SHORTEST_CHUNK : chunk > LONGEST_CHUNK ? LONGEST_CHUNK : chunk;
    d->chunks = (positions + d->chunk - 1) / d->chunk;
    d->units = planes * d->chunks;
    if (d->units <= d->partial_room) return 0;
    free(d->partial);
    d->partial_room = 2 * d->units;  /* so that memory is not asked for at every step */
    d->partial = aligned_zeros(4 * d->partial_room * (m->heads / m->kv_heads) * (m->head_dim + 2));
    if (!d->partial) d->partial_room = 0;
    return d->partial ? 0 : -1;
}

int64_t model_bytes(void) { return (int64_t)sizeof(Model); }

const char *instructions(void) { return instructions_of_build(); }

void decoder_close(Decoder *d) {
    if (!d) return;
    stop_threads(d);
    free_room(d);
    for (int64_t i = 0; d->workers && i < d->model.threads; i++) {
        free_input(&d->workers[i].input);
        free(d->workers[i].queries), free(d->workers[i].scores), free(d->workers[i].begins);
    }
    free_input(&d->shared);
    free(d->partial), free(d->workers);
    free((void *)d->model.layer);
    free(d);
}

/* Null where memory or threads are exhausted. What `model` points to must stay, except its array of layers. */
Decoder *decoder_open(const Model *model) {
    Decoder *d = aligned_zeros(sizeof(Decoder));
    if (!d) return NULL;
    d->model = *model;
    Layer *layers = aligned_zeros((int64_t)sizeof(Layer) * model->layers);
    d->workers = aligned_zeros((int64_t)sizeof(Worker) * model->threads);
    d->model.layer = layers;
    if (!layers || !d->workers) return decoder_close(d), NULL;
    memcpy(layers, model->layer, sizeof(Layer) * (size_t)model->layers);
    int64_t attended = model->heads * model->head_dim, queries = model->heads / model->kv_heads;
    d->hidden_stride = padded(model->hidden, PAD);
    d->qkv_stride = padded(attended + 2 * model->kv_heads * model->head_dim, PAD);
    d->middle_stride = padded(model->intermediate, PAD);
    d->odds_stride = padded(model->experts, PAD);
    d->widest = padded(attended, PAD);
    if (d->hidden_stride > d->widest) d->widest = d->hidden_stride;
    if (d->middle_stride > d->widest) d->widest = d->middle_stride;
    int short_of = 0;
    for (int64_t i = 0; i < model->threads; i++) {
        Worker *w = &d->workers[i];
        w->decoder = d;
        w->index = (int)i;
        w->queries = aligned_zeros(4 * queries * model->head_dim);
        w->scores = aligned_zeros(4 * queries * LONGEST_CHUNK);
        w->begins = aligned_zeros((int64_t)sizeof(int64_t) * (model->experts + 1));
        short_of |= !w->queries || !w->scores || !w->begins;
    }
    if (short_of || start_threads(d)) return decoder_close(d), NULL;
    return d;
}

static void embed(Decoder *d) {
    const Model *m = &d->model;
    for (int64_t b = 0; b < d->lines; b++) {
        float *h = d->residual + b * d->hidden_stride;
        int64_t token = d->step.tokens[b] * m->hidden, place = d->step.positions[b];
        for (int64_t c = 0; c < m->hidden; c++) {
            if (m->embedding_bfloat16) {
                uint32_t bits = (uint32_t)((const uint16_t *)m->embedding)[token + c] << 16;
                memcpy(h + c, &bits, 4);
            } else {
                h[c] = ((const float *)m->embedding)[token + c];
            }
        }
        if (m->embedding_scale != 1)
            for (int64_t c = 0; c < m->hidden; c++) h[c] *= m->embedding_scale;
        if (m->positions == LEARNED)
            for (int64_t c = 0; c < m->hidden; c++)
                h[c] += m->position_embedding[place * m->hidden + c];
        if (m->embedding_norm.weight) normalise(m, m->embedding_norm, h, h);
        for (int64_t t = 0; t < m->turns; t++) {
            float *angles = d->angles + (b * m->turns + t) * m->head_dim;
            for (int64_t i = 0; i < m->rotary / 2; i++) {
                float angle = (float)place * m->inverse_frequencies[t * m->rotary / 2 + i];
                angles[i] = cosf(angle) * m->rotary_scale[t];
                angles[m->rotary / 2 + i] = sinf(angle) * m->rotary_scale[t];
            }
        }
    }
}

static int in_range(const Decoder *d, const Step *step) {
    if (step->batch < 1 || step->new < 1 || step->length < 0 || step->length + step->new > step->capacity) return 0;
    if (step->layers < 1 || step->layers > d->model.layers || step->logits_to_keep < 0 || step->logits_to_keep > step->new) return 0;
    for (int64_t b = 0; b < step->batch; b++)
        if (step->starts[b] < 0 || step->starts[b] > step->length + step->new - 1) return 0;
    for (int64_t i = 0; i < step->batch * step->new; i++) {
        if (step->tokens[i] < 0 || step->tokens[i] >= d->model.vocabulary || step->positions[i] < 0) return 0;
        if (d->model.positions == LEARNED && step->positions[i] >= d->model.position_rows) return 0;
    }
    return 1;
}

/* New tokens for each row. Returns 0, -1 where memory or threads are exhausted, -2 where a number is out of range. */
int decoder_step(Decoder *d, const Step *step) {
    if (!in_range(d, step)) return -2;
    if (d->process != getpid() && start_threads(d)) return -1;
    d->step = *step;
    d->lines = step->batch * step->new;
    d->product = NULL;
    if (make_room(d, d->lines) || cut_attention(d)) return -1;
    embed(d);
#ifdef PHASES
    memset(d->phase_ns, 0, sizeof d->phase_ns);
    d->step_began = d->phase_began = now_ns();
#endif
    if (d->model.threads > 1) advance(d, &d->epoch, d->epoch + 1);
    work(&d->workers[0]);
#ifdef PHASES
    double took = now_ns() - d->step_began;
    if (!d->fastest || took < d->fastest) {
        d->fastest = took;
        memcpy(d->fastest_ns, d->phase_ns, sizeof d->phase_ns);
    }
#endif
    return 0;
}

/* y = x times a matrix, transposed, plus its bias. Returns 0 or -1 as a step does. */
int decoder_multiply(Decoder *d, const Product *product) {
    if (d->process != getpid() && start_threads(d)) return -1;
    if (make_input(&d->shared, product->lines, d->widest)) return -1;
    d->product = product;
    if (d->model.threads > 1) advance(d, &d->epoch, d->epoch + 1);
    multiply(&d->workers[0]);
    return 0;
}

#ifdef PHASES
/* Nanoseconds of the fastest step by phase, as thread 0 saw them. */
void decoder_phases(Decoder *d, double *ns) { memcpy(ns, d->fastest_ns, sizeof d->fastest_ns); }
#endif
