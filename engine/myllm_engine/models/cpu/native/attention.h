/* Attention over pages, with the softmax computed as the keys go by (Milakov and Gimelshein, 2018).
 *
 * A page holds, per layer, keys `[kv_heads, head_dim, page_size]` and values `[kv_heads, page_size, head_dim]`:
 * scores of 16 positions come from one vector of keys per dimension, with no sums across lanes. In bfloat16 two
 * numbers share each place of a float, as dot products of pairs read them: keys `[kv_heads, head_dim / 2, page_size,
 * 2]`, values `[kv_heads, page_size / 2, head_dim, 2]` (and as above where `page_size` is odd).
 *
 * Keys go by in spans of 64 positions that begin at multiples of 64, so that a token's result depends neither on
 * the chunk it came in nor on its batch.
 */
#ifndef MYLLM_ATTENTION_H
#define MYLLM_ATTENTION_H

#include "vectors.h"

#define SPAN 64
#define PARTS (SPAN / LANES)
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
    f32x16 total[ATTENTION_ROWS]; /* of the weights so far, by lane */
    float most[ATTENTION_ROWS];   /* of the scores so far */
    int first[ATTENTION_ROWS], end[ATTENTION_ROWS];
    /* 16 positions as floats, where pages do not hold whole vectors of them. */
    float staged_keys[MAX_HEAD_DIM * LANES], staged_values[LANES * MAX_HEAD_DIM];
} AttentionRows;

/* ---- pages ---- */

/* Whether two numbers lie side by side; by as much places are shifted. */
INLINE int has_pairs(const AttentionPlace *at) { return at->is_bf16 && at->page_size % 2 == 0; }
INLINE int holds_vectors(const AttentionPlace *at) { return at->page_size % LANES == 0; }

/* The first of a page's numbers, of keys or of values. */
INLINE size_t page_start(const AttentionPlace *at, int page) {
    return ((size_t)page * at->kv_heads + at->kv_head) * at->page_size * at->head_dim;
}
INLINE size_t key_place(const AttentionPlace *at, int page, int offset, int d) {
    int pairs = has_pairs(at);
    return page_start(at, page) + (((size_t)(d >> pairs) * at->page_size + offset) << pairs) + (d & pairs);
}
INLINE size_t value_place(const AttentionPlace *at, int page, int offset, int d) {
    int pairs = has_pairs(at);
    return page_start(at, page) + (((size_t)(offset >> pairs) * at->head_dim + d) << pairs) + (offset & pairs);
}

INLINE float read_kv(const void *from, size_t place, int is_bf16) {
    if (!is_bf16) return ((const float *)from)[place];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[place] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Store a token's key and value, `[head_dim]` each. */
static void write_kv(
    const AttentionPlace *at, int page, int offset, const float *key, const float *value, void *keys, void *values) {
    int dim = at->head_dim, size = at->page_size, pairs = has_pairs(at), next = pairs ? 1 : size;
    size_t key_at = key_place(at, page, offset, 0), value_at = value_place(at, page, offset, 0);
    if (at->is_bf16) {
        uint16_t halves[2][MAX_HEAD_DIM], *to = (uint16_t *)keys + key_at;
        for (int d = 0; d < dim; d++) halves[0][d] = to_bf16(key[d]);
        for (int d = 0; d < dim; d++) halves[1][d] = to_bf16(value[d]);
        for (int d = 0; d < dim; d += 2, to += 2 * size) to[0] = halves[0][d], to[next] = halves[0][d + 1];
        to = (uint16_t *)values + value_at;
        for (int d = 0; d < dim; d++) to[(size_t)d << pairs] = halves[1][d];
    } else {
        for (int d = 0; d < dim; d++) ((float *)keys)[key_at + (size_t)d * size] = key[d];
        memcpy((float *)values + value_at, value, sizeof(float) * dim);
    }
}

/* 16 pairs: side by side in bfloat16, `apart` as floats. */
INLINE void load_pairs(
    const void *from, size_t place, size_t apart, const int is_bf16, f32x16 *even, f32x16 *odd) {
    if (is_bf16) {
        u32x16 pairs = *(const u32x16_any *)((const uint16_t *)from + place);
        *even = (f32x16)(pairs << 16);
        *odd = (f32x16)(pairs & 0xffff0000);
    } else {
        *even = load((const float *)from + place);
        *odd = load((const float *)from + place + apart);
    }
}

static void stage(const AttentionPlace *at, AttentionRows *rows, int position, int count) {
    memset(rows->staged_keys, 0, sizeof(float) * LANES * at->head_dim);
    for (int i = 0; i < count; i++) {
        int page = at->pages[(position + i) / at->page_size], offset = (position + i) % at->page_size;
        for (int d = 0; d < at->head_dim; d++) {
            rows->staged_keys[d * LANES + i] = read_kv(at->keys, key_place(at, page, offset, d), at->is_bf16);
            rows->staged_values[i * at->head_dim + d] =
                read_kv(at->values, value_place(at, page, offset, d), at->is_bf16);
        }
    }
}

/* Ask for a page's keys and values: a page is too short for the CPU to see that it is read whole. */
INLINE void prefetch_page(const AttentionPlace *at, int page) {
    size_t each = at->is_bf16 ? 2 : 4, size = each * at->page_size * at->head_dim, from = each * page_start(at, page);
    for (size_t i = from; i < from + size; i += 64) {
        __builtin_prefetch((const char *)at->keys + i, 0, 3);
        __builtin_prefetch((const char *)at->values + i, 0, 3);
    }
}

/* ---- scores and weights ---- */

/* Hide from row `r` what it does not see of 16 positions. */
INLINE f32x16 hide(const AttentionRows *rows, int r, int position, f32x16 scores) {
    static const int32_t numbers[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    i32x16 at = *(const i32x16 *)memcpy(&(i32x16){0}, numbers, 64) + position;
    i32x16 seen = ~below_int(at, rows->first[r]) & below_int(at, rows->end[r]);
    return select_float(seen, scores, splat(-INFINITY));
}

/* Turn a span's scores to weights; returns what all that was summed before is to be multiplied with. */
INLINE float soften(AttentionRows *rows, int r, f32x16 scores[PARTS]) {
    f32x16 most = scores[0], sum = splat(0);
    float before = rows->most[r], limit, decay;
#pragma GCC unroll 4
    for (int i = 1; i < PARTS; i++) most = max_each(most, scores[i]);
    limit = max_lanes(most);
    if (limit < before) limit = before;
    /* Where nothing was seen yet, scores and limit are infinite, and their difference is no number. */
    f32x16 base = splat(limit == -INFINITY ? 0 : limit);
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; i++) sum += scores[i] = exp_each(scores[i] - base);
    decay = before == limit ? 1 : exp_each(before - base)[0];
    rows->total[r] = rows->total[r] * decay + sum;
    rows->most[r] = limit;
    return decay;
}

INLINE void scale_by(float *values, float factor, int count) {
    if (factor != 1)
        for (int d = 0; d < count; d += LANES) store(values + d, load(values + d) * factor);
}

/* ---- with vectors ---- */

/* scores[r][column ..] of 16 positions. */
INLINE void score16(
    const int count, const int is_bf16, AttentionRows *rows, const void *keys, size_t place, size_t stride,
    int head_dim, int position, int column) {
    f32x16 sums[ATTENTION_ROWS], others[ATTENTION_ROWS]; /* two, as each addition waits for the one before */
#pragma GCC unroll 8
    for (int r = 0; r < count; r++) sums[r] = others[r] = splat(0);
    for (int d = 0; d < head_dim; d += 2) {
        f32x16 key, next;
        load_pairs(keys, place + d * stride, stride, is_bf16, &key, &next);
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) {
            sums[r] += key * rows->query[r][d];
            others[r] += next * rows->query[r][d + 1];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < count; r++)
        store(rows->scores[r] + column, hide(rows, r, position, sums[r] + others[r]));
}

/* output[r] += scores[r][column + i] * values[i], for `positions` of them, in `wide` vectors of dimensions: two where
 * there are two, as each addition waits for the one before. */
INLINE void weigh_wide(
    const int count, const int is_bf16, const int wide, AttentionRows *rows, const void *values, size_t place,
    int head_dim, int positions, int column, int d) {
    f32x16 sums[2][ATTENTION_ROWS];
    place += (size_t)d * (is_bf16 ? 2 : 1);
#pragma GCC unroll 2
    for (int j = 0; j < wide; j++)
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) sums[j][r] = load(rows->output[r] + d + j * LANES);
    for (int i = 0; i < positions; i += 2, place += 2 * (size_t)head_dim) {
#pragma GCC unroll 2
        for (int j = 0; j < wide; j++) {
            f32x16 value, next;
            load_pairs(values, place + j * LANES * (is_bf16 ? 2 : 1), head_dim, is_bf16, &value, &next);
            if (i + 1 == positions) next = splat(0); /* what lies there may be no number */
#pragma GCC unroll 8
            for (int r = 0; r < count; r++) {
                sums[j][r] += value * rows->scores[r][column + i];
                sums[j][r] += next * rows->scores[r][column + i + 1];
            }
        }
    }
#pragma GCC unroll 2
    for (int j = 0; j < wide; j++)
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) store(rows->output[r] + d + j * LANES, sums[j][r]);
}

INLINE void weigh(
    const int count, const int is_bf16, AttentionRows *rows, const void *values, size_t place, int head_dim,
    int positions, int column) {
    int d = 0;
    for (; d + 2 * LANES <= head_dim; d += 2 * LANES)
        weigh_wide(count, is_bf16, 2, rows, values, place, head_dim, positions, column, d);
    if (d < head_dim) weigh_wide(count, is_bf16, 1, rows, values, place, head_dim, positions, column, d);
}

INLINE void attend(const int count, const int is_bf16, const AttentionPlace *at, AttentionRows *rows) {
    int first = rows->first[0], end = rows->end[0], whole = holds_vectors(at);
    for (int r = 0; r < count; r++) {
        first = rows->first[r] < first ? rows->first[r] : first;
        end = rows->end[r] > end ? rows->end[r] : end;
        memset(rows->output[r], 0, sizeof(float) * at->head_dim);
        rows->most[r] = -INFINITY;
        rows->total[r] = splat(0);
    }
    for (int span = first / SPAN * SPAN; span < end; span += SPAN) {
        int width = 0;
        for (int position = span; position < span + SPAN && position < end; position += LANES, width += LANES) {
            int left = end - position < LANES ? end - position : LANES, next = position + at->page_size;
            if (next < end && position % at->page_size == 0) prefetch_page(at, at->pages[next / at->page_size]);
            if (whole) {
                size_t place = key_place(at, at->pages[position / at->page_size], position % at->page_size, 0);
                score16(count, is_bf16, rows, at->keys, place, at->page_size, at->head_dim, position, width);
            } else {
                stage(at, rows, position, left);
                score16(count, 0, rows, rows->staged_keys, 0, LANES, at->head_dim, position, width);
            }
        }
        for (int r = 0; r < count; r++) {
            f32x16 scores[PARTS];
#pragma GCC unroll 4
            for (int i = 0; i < PARTS; i++)
                scores[i] = i * LANES < width ? load(rows->scores[r] + i * LANES) : splat(-INFINITY);
            scale_by(rows->output[r], soften(rows, r, scores), at->head_dim);
#pragma GCC unroll 4
            for (int i = 0; i < PARTS; i++) store(rows->scores[r] + i * LANES, scores[i]);
        }
        for (int column = 0; column < width; column += LANES) {
            int position = span + column, left = end - position < LANES ? end - position : LANES;
            if (whole) {
                size_t place = value_place(at, at->pages[position / at->page_size], position % at->page_size, 0);
                weigh(count, is_bf16, rows, at->values, place, at->head_dim, left, column);
            } else {
                stage(at, rows, position, left);
                weigh(count, 0, rows, rows->staged_values, 0, at->head_dim, left, column);
            }
        }
    }
    for (int r = 0; r < count; r++) scale_by(rows->output[r], 1 / sum_lanes(rows->total[r]), at->head_dim);
}

/* Attend with `count` rows, 1 to ATTENTION_ROWS. */
static void attend_with_vectors(const AttentionPlace *at, AttentionRows *rows, int count) {
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
