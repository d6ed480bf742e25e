/* Attention with matrix tiles, where the cache is in bfloat16 and pages hold whole vectors of positions.
 *
 * A query, and the weights of its positions, are split in two: what bfloat16 holds of them, and what that leaves,
 * 16 bits together. Both halves of 8 query rows fill the 16 rows of a tile, so that few rows, as in a decode, take
 * half the products. A token alone is computed the same way, and its result does not depend on the others.
 */
#ifndef MYLLM_ATTENTION_TILES_H
#define MYLLM_ATTENTION_TILES_H

#include "amx.h"
#include "attention.h"

#if HAS_TILES

#define HALVES_ROWS (2 * ATTENTION_ROWS) /* of row r: r the upper half, r + ATTENTION_ROWS the lower */
#define AT_A_TIME 4 /* tiles of sums */

typedef struct {
    uint16_t query[HALVES_ROWS][MAX_HEAD_DIM], weights[HALVES_ROWS][SPAN];
    float scores[PARTS][HALVES_ROWS][LANES], output[HALVES_ROWS][MAX_HEAD_DIM];
    uint16_t values[LANES * MAX_HEAD_DIM]; /* of the last positions, with zeros where there are no more */
} __attribute__((aligned(64))) AttentionTiles;

/* Store 16 floats as upper and lower halves. */
INLINE void store_halves(uint16_t *upper, uint16_t *lower, f32x16 value) {
    __m256i high = (__m256i)_mm512_cvtneps_pbh((__m512)value);
    f32x16 rest = value - (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
    _mm256_storeu_si256((__m256i *)upper, high);
    _mm256_storeu_si256((__m256i *)lower, (__m256i)_mm512_cvtneps_pbh((__m512)rest));
}

#define BEGIN(i)                                                                                               \
    if (i < count) TILE_ZERO(i);
#define ADD_KEYS(i, queries, keys, part)                                                                       \
    if (i < count) {                                                                                           \
        TILE_LOAD(keys, from[i] + (size_t)(part) * at->page_size, 4 * (size_t)at->page_size);                  \
        TILE_DOT(i, queries, keys);                                                                            \
    }
#define END(i)                                                                                                 \
    if (i < count) TILE_STORE(i, tiles->scores[i], 64);

/* Scores of `count` parts of 16 positions from `position` on. */
INLINE void score_parts(const AttentionPlace *at, AttentionTiles *tiles, int position, int count) {
    const uint16_t *from[PARTS];
    int d = 0;
    for (int i = 0; i < count; i++) {
        int p = position + i * LANES;
        from[i] = (const uint16_t *)at->keys + key_place(at, at->pages[p / at->page_size], p % at->page_size, 0);
    }
    BEGIN(0) BEGIN(1) BEGIN(2) BEGIN(3)
    for (; d + 2 * LANES <= at->head_dim; d += 2 * LANES) {
        TILE_LOAD(4, tiles->query[0] + d, sizeof(tiles->query[0]));
        ADD_KEYS(0, 4, 6, d) ADD_KEYS(1, 4, 6, d) ADD_KEYS(2, 4, 6, d) ADD_KEYS(3, 4, 6, d)
    }
    if (d < at->head_dim) {
        TILE_LOAD(5, tiles->query[0] + d, sizeof(tiles->query[0]));
        ADD_KEYS(0, 5, 7, d) ADD_KEYS(1, 5, 7, d) ADD_KEYS(2, 5, 7, d) ADD_KEYS(3, 5, 7, d)
    }
    END(0) END(1) END(2) END(3)
}
#undef BEGIN
#undef ADD_KEYS
#undef END

#define BEGIN(i)                                                                                               \
    if (i < count) TILE_LOAD(i, tiles->output[0] + d + i * LANES, sizeof(tiles->output[0]));
#define ADD_VALUES(i)                                                                                          \
    if (i < count) {                                                                                           \
        TILE_LOAD(7, from[part] + 2 * (d + i * LANES), 4 * (size_t)at->head_dim);                              \
        TILE_DOT(i, 5, 7);                                                                                     \
    }
#define END(i)                                                                                                 \
    if (i < count) TILE_STORE(i, tiles->output[0] + d + i * LANES, sizeof(tiles->output[0]));

/* Add what `parts` of 16 positions weigh, of which there are `left`. */
INLINE void weigh_parts(const AttentionPlace *at, AttentionTiles *tiles, int position, int parts, int left) {
    const uint16_t *from[PARTS];
    for (int i = 0; i < parts; i++, left -= LANES) {
        int p = position + i * LANES;
        from[i] = (const uint16_t *)at->values + value_place(at, at->pages[p / at->page_size], p % at->page_size, 0);
        if (left >= LANES) continue;
        /* What lies behind the last position may be no number, which no weight of zero takes away. */
        size_t row = sizeof(uint32_t) * at->head_dim;
        memcpy(tiles->values, from[i], (left + 1) / 2 * row);
        memset((char *)tiles->values + (left + 1) / 2 * row, 0, (LANES - left) / 2 * row);
        for (int d = 0; d < at->head_dim && left % 2; d++) tiles->values[(left / 2 * at->head_dim + d) * 2 + 1] = 0;
        from[i] = tiles->values;
    }
    for (int d = 0; d < at->head_dim; d += AT_A_TIME * LANES) {
        int missing = (at->head_dim - d) / LANES, count = missing < AT_A_TIME ? missing : AT_A_TIME;
        BEGIN(0) BEGIN(1) BEGIN(2) BEGIN(3)
        for (int part = 0; part < parts; part++) {
            TILE_LOAD(5, tiles->weights[0] + part * LANES, sizeof(tiles->weights[0]));
            ADD_VALUES(0) ADD_VALUES(1) ADD_VALUES(2) ADD_VALUES(3)
        }
        END(0) END(1) END(2) END(3)
    }
}
#undef BEGIN
#undef ADD_VALUES
#undef END

/* Turn a row's dot products to weights, and scale down what was summed before. */
INLINE void soften_parts(
    const AttentionPlace *at, AttentionRows *rows, AttentionTiles *tiles, int r, int position, int parts, int hides) {
    f32x16 scores[PARTS];
    int lower = r + ATTENTION_ROWS;
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; i++) {
        scores[i] = i < parts ? load(tiles->scores[i][r]) + load(tiles->scores[i][lower]) : splat(-INFINITY);
        if (hides) scores[i] = hide(rows, r, position + i * LANES, scores[i]);
    }
    float decay = soften(rows, r, scores);
    scale_by(tiles->output[r], decay, at->head_dim);
    scale_by(tiles->output[lower], decay, at->head_dim);
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; i++)
        store_halves(tiles->weights[r] + i * LANES, tiles->weights[lower] + i * LANES, scores[i]);
}

static void attend_with_tiles(const AttentionPlace *at, AttentionRows *rows, AttentionTiles *tiles, int count) {
    int first = rows->first[0], last_first = first, end = rows->end[0], first_end = end;
    tiles_shape(HALVES);
    for (int r = 0; r < count; r++) {
        int lower = r + ATTENTION_ROWS;
        first = rows->first[r] < first ? rows->first[r] : first;
        last_first = rows->first[r] > last_first ? rows->first[r] : last_first;
        end = rows->end[r] > end ? rows->end[r] : end;
        first_end = rows->end[r] < first_end ? rows->end[r] : first_end;
        rows->most[r] = -INFINITY;
        rows->total[r] = splat(0);
        memset(tiles->output[r], 0, sizeof(float) * at->head_dim);
        memset(tiles->output[lower], 0, sizeof(float) * at->head_dim);
        for (int d = 0; d < at->head_dim; d += LANES)
            store_halves(tiles->query[r] + d, tiles->query[lower] + d, load(rows->query[r] + d));
    }
    for (int span = first / SPAN * SPAN; span < end; span += SPAN) {
        int left = end - span < SPAN ? end - span : SPAN, parts = (left + LANES - 1) / LANES;
        int hides = span < last_first || span + parts * LANES > first_end;
        if (first_end == end) /* one token, which reads them alone */
            for (int p = span + (span > first ? SPAN : 0); p < span + 2 * SPAN && p < end; p += at->page_size)
                prefetch_page(at, at->pages[p / at->page_size]);
        score_parts(at, tiles, span, parts);
        for (int r = 0; r < count; r++) soften_parts(at, rows, tiles, r, span, parts, hides);
        weigh_parts(at, tiles, span, parts, left);
    }
    for (int r = 0; r < count; r++) {
        float factor = 1 / sum_lanes(rows->total[r]);
        for (int d = 0; d < at->head_dim; d += LANES)
            store(
                rows->output[r] + d,
                (load(tiles->output[r] + d) + load(tiles->output[r + ATTENTION_ROWS] + d)) * factor);
    }
}

#else
typedef struct {
    char none;
} AttentionTiles;
#endif

/* What a thread needs to attend. */
typedef struct {
    AttentionRows rows;
    AttentionTiles tiles;
} AttentionScratch;

/* Attend with `count` rows, 1 to ATTENTION_ROWS, of `scratch`. */
static void attention_rows(const AttentionPlace *at, AttentionScratch *scratch, int count) {
#if HAS_TILES
    if (tiles_allowed && at->is_bf16 && holds_vectors(at)) {
        attend_with_tiles(at, &scratch->rows, &scratch->tiles, count);
        return;
    }
#endif
    attend_with_vectors(at, &scratch->rows, count);
}

#endif
