/* Attention over pages, with the softmax computed as the keys go by (Milakov and Gimelshein, 2018).
 *
 * A page holds, per layer, keys `[kv_heads, head_dim, page_size]` and values `[kv_heads, page_size, head_dim]`:
 * scores of 16 positions come from one vector of keys per dimension, with no sums across lanes. Keys go by in
 * spans of 64 positions that begin at multiples of 64, so that a token's result depends neither on the chunk
 * it came in nor on its batch.
 */
#ifndef MYLLM_ATTENTION_H
#define MYLLM_ATTENTION_H

#include "vectors.h"

#define SPAN 64
#define MAX_HEAD_DIM 256
#ifdef __AVX512F__
#define ATTENTION_ROWS 8
#else
#define ATTENTION_ROWS 4
#endif

typedef struct {
    int kv_heads, head_dim, page_size, is_bf16;
    int kv_head;
    const void *keys, *values; /* of the layer */
    const int32_t *pages;      /* of the sequence */
} AttentionPlace;

/* Some query rows of one key head: `query[r]` (scaled, `[head_dim]`) sees positions `first[r] .. end[r] - 1`. */
typedef struct {
    float query[ATTENTION_ROWS][MAX_HEAD_DIM];
    float output[ATTENTION_ROWS][MAX_HEAD_DIM];
    float scores[ATTENTION_ROWS][SPAN];
    float most[ATTENTION_ROWS], total[ATTENTION_ROWS];
    int first[ATTENTION_ROWS], end[ATTENTION_ROWS];
    /* 16 positions as floats, where pages do not hold whole vectors of them. */
    float staged_keys[MAX_HEAD_DIM * LANES], staged_values[LANES * MAX_HEAD_DIM];
} AttentionRows;

INLINE f32x16 load_kv(const void *from, size_t place, const int is_bf16) {
    return is_bf16 ? load_bf16((const uint16_t *)from + place) : load((const float *)from + place);
}

INLINE float read_kv(const void *from, size_t place, int is_bf16) {
    if (!is_bf16) return ((const float *)from)[place];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[place] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE void write_kv(void *to, size_t place, float value, int is_bf16) {
    if (is_bf16) ((uint16_t *)to)[place] = to_bf16(value);
    else ((float *)to)[place] = value;
}

/* The place of (position, dimension 0) among a layer's values, and of (dimension 0, position) among its keys. */
INLINE size_t value_place(const AttentionPlace *at, int page, int offset) {
    return (((size_t)page * at->kv_heads + at->kv_head) * at->page_size + offset) * at->head_dim;
}
INLINE size_t key_place(const AttentionPlace *at, int page, int offset) {
    return ((size_t)page * at->kv_heads + at->kv_head) * at->head_dim * at->page_size + offset;
}

static void stage(const AttentionPlace *at, AttentionRows *rows, int position, int count) {
    memset(rows->staged_keys, 0, sizeof(float) * LANES * at->head_dim);
    for (int i = 0; i < count; i++) {
        int page = at->pages[(position + i) / at->page_size], offset = (position + i) % at->page_size;
        size_t key = key_place(at, page, offset), value = value_place(at, page, offset);
        for (int d = 0; d < at->head_dim; d++) {
            rows->staged_keys[d * LANES + i] = read_kv(at->keys, key + (size_t)d * at->page_size, at->is_bf16);
            rows->staged_values[i * at->head_dim + d] = read_kv(at->values, value + d, at->is_bf16);
        }
    }
}

/* scores[r][column ..] of 16 positions, hidden ones at minus infinity. */
INLINE void score16(
    const int count, const int is_bf16, AttentionRows *rows, const void *keys, size_t place, size_t stride,
    int head_dim, int position, int column) {
    f32x16 sums[ATTENTION_ROWS], others[ATTENTION_ROWS]; /* two, as each addition waits for the one before */
    static const int32_t numbers[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 8
    for (int r = 0; r < count; r++) sums[r] = others[r] = splat(0);
    for (int d = 0; d < head_dim; d += 2) {
        f32x16 key = load_kv(keys, place + d * stride, is_bf16);
        f32x16 next = load_kv(keys, place + (d + 1) * stride, is_bf16);
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) {
            sums[r] += key * rows->query[r][d];
            others[r] += next * rows->query[r][d + 1];
        }
    }
    i32x16 at = *(const i32x16 *)memcpy(&(i32x16){0}, numbers, 64) + position;
#pragma GCC unroll 8
    for (int r = 0; r < count; r++) {
        i32x16 seen = ~below_int(at, rows->first[r]) & below_int(at, rows->end[r]);
        store(rows->scores[r] + column, select_float(seen, sums[r] + others[r], splat(-INFINITY)));
    }
}

/* output[r] += scores[r][column + i] * values[i], for `positions` of them. */
INLINE void weigh(
    const int count, const int is_bf16, AttentionRows *rows, const void *values, size_t place, int head_dim,
    int positions, int column) {
    int d = 0;
    for (; d + 2 * LANES <= head_dim; d += 2 * LANES) {
        f32x16 low[ATTENTION_ROWS], high[ATTENTION_ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) {
            low[r] = load(rows->output[r] + d);
            high[r] = load(rows->output[r] + d + LANES);
        }
        for (int i = 0; i < positions; i++) {
            f32x16 a = load_kv(values, place + (size_t)i * head_dim + d, is_bf16);
            f32x16 b = load_kv(values, place + (size_t)i * head_dim + d + LANES, is_bf16);
#pragma GCC unroll 8
            for (int r = 0; r < count; r++) {
                low[r] += a * rows->scores[r][column + i];
                high[r] += b * rows->scores[r][column + i];
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) {
            store(rows->output[r] + d, low[r]);
            store(rows->output[r] + d + LANES, high[r]);
        }
    }
    for (; d < head_dim; d += LANES)
        for (int r = 0; r < count; r++) {
            f32x16 sum = load(rows->output[r] + d);
            for (int i = 0; i < positions; i++)
                sum += load_kv(values, place + (size_t)i * head_dim + d, is_bf16) * rows->scores[r][column + i];
            store(rows->output[r] + d, sum);
        }
}

/* Turn a span's scores to weights and scale what was summed before down to the new maximum. */
static void soften(AttentionRows *rows, int r, int width, int head_dim) {
    float *scores = rows->scores[r];
    f32x16 most = load(scores), sum = splat(0);
    for (int c = LANES; c < width; c += LANES) most = max_each(most, load(scores + c));
    float limit = max_lanes(most);
    if (limit < rows->most[r]) limit = rows->most[r];
    if (limit == -INFINITY) { /* nothing seen yet: no weight */
        for (int c = 0; c < width; c += LANES) store(scores + c, splat(0));
        return;
    }
    for (int c = 0; c < width; c += LANES) {
        f32x16 weight = exp_each(load(scores + c) - limit);
        store(scores + c, weight);
        sum += weight;
    }
    float decay = rows->most[r] == limit ? 1 : exp_each(splat(rows->most[r] - limit))[0];
    rows->total[r] = rows->total[r] * decay + sum_lanes(sum);
    rows->most[r] = limit;
    if (decay != 1)
        for (int d = 0; d < head_dim; d += LANES) store(rows->output[r] + d, load(rows->output[r] + d) * decay);
}

/* Ask for the keys and values of a position's page: a page is too short for the CPU to see that it is read whole. */
INLINE void prefetch_page(const AttentionPlace *at, int position) {
    size_t each = at->is_bf16 ? 2 : 4, size = each * at->page_size * at->head_dim;
    size_t place = each * value_place(at, at->pages[position / at->page_size], 0);
    for (size_t i = 0; i < size; i += 64) {
        __builtin_prefetch((const char *)at->keys + place + i, 0, 2);
        __builtin_prefetch((const char *)at->values + place + i, 0, 2);
    }
}

INLINE void attend(const int count, const int is_bf16, const AttentionPlace *at, AttentionRows *rows) {
    int first = rows->first[0], end = rows->end[0], whole = at->page_size % LANES == 0;
    for (int r = 0; r < count; r++) {
        first = rows->first[r] < first ? rows->first[r] : first;
        end = rows->end[r] > end ? rows->end[r] : end;
        rows->most[r] = -INFINITY;
        rows->total[r] = 0;
        memset(rows->output[r], 0, sizeof(float) * at->head_dim);
    }
    for (int span = first / SPAN * SPAN; span < end; span += SPAN) {
        int width = 0;
        for (int position = span; position < span + SPAN && position < end; position += LANES, width += LANES) {
            int left = end - position < LANES ? end - position : LANES, next = position + at->page_size;
            if (next < end && position % at->page_size == 0) prefetch_page(at, next);
            if (whole) {
                size_t place =
                    key_place(at, at->pages[position / at->page_size], position % at->page_size);
                score16(count, is_bf16, rows, at->keys, place, at->page_size, at->head_dim, position, width);
            } else {
                stage(at, rows, position, left);
                score16(count, 0, rows, rows->staged_keys, 0, LANES, at->head_dim, position, width);
            }
        }
        for (int r = 0; r < count; r++) soften(rows, r, width, at->head_dim);
        for (int column = 0; column < width; column += LANES) {
            int position = span + column, left = end - position < LANES ? end - position : LANES;
            if (whole) {
                size_t place =
                    value_place(at, at->pages[position / at->page_size], position % at->page_size);
                weigh(count, is_bf16, rows, at->values, place, at->head_dim, left, column);
            } else {
                stage(at, rows, position, left);
                weigh(count, 0, rows, rows->staged_values, 0, at->head_dim, left, column);
            }
        }
    }
    for (int r = 0; r < count; r++)
        for (int d = 0; d < at->head_dim; d += LANES)
            store(rows->output[r] + d, load(rows->output[r] + d) / rows->total[r]);
}

/* Attend with `count` rows, 1 to ATTENTION_ROWS. */
static void attention_rows(const AttentionPlace *at, AttentionRows *rows, int count) {
    /* Rows that are not asked for are computed with the last one's limits, and thrown away. */
    int padded = count == 1 || (count <= 4 && ATTENTION_ROWS > 4) ? count : ATTENTION_ROWS;
    for (int r = count; r < padded; r++) {
        rows->first[r] = rows->first[count - 1];
        rows->end[r] = rows->end[count - 1];
        memcpy(rows->query[r], rows->query[count - 1], sizeof(float) * at->head_dim);
    }
#define ATTEND(n)                                                                                              \
    case n:                                                                                                    \
        if (at->is_bf16) attend(n, 1, at, rows);                                                               \
        else attend(n, 0, at, rows);                                                                           \
        break;
    switch (padded) {
        ATTEND(1)
#if ATTENTION_ROWS > 4
        ATTEND(2)
        ATTEND(3)
        ATTEND(8)
#endif
        ATTEND(4)
    }
#undef ATTEND
}

#endif
