/* One forward pass of a Llama-like model over a flat batch of tokens: what `model.py` describes in its
 * structures, which must match the ones here.
 *
 * All threads run `forward` and share each phase's work; barriers part the phases. Comments give shapes:
 * T tokens of S sequences, R rows of logits.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attention_tiles.h"
#include "linear.h"
#include "pool.h"
#include "tiles.h"
#include "vectors.h"

typedef struct {
    Linear qkv, o, gate_up, down; /* gate_up: 16 rows of gate, 16 of up, in turns */
    const float *input_norm, *post_norm;
    const float *q_norm, *k_norm; /* [head_dim], or NULL */
    void *keys, *values;          /* of all pages; see attention.h */
    int32_t window, reserved;     /* positions a token sees, itself included; 0: all before it */
} Layer;

typedef struct {
    int32_t num_layers, hidden, intermediate, heads, kv_heads, head_dim, page_size, kv_is_bf16;
    int32_t max_tokens, num_threads; /* of one step, and as many rows of logits */
    float eps, scale;
    const float *cos, *sin; /* [positions, head_dim / 2] */
    const float *norm;
    Linear embed, head; /* one and the same when tied */
    const Layer *layers;
} Config;

typedef struct {
    int32_t num_tokens, num_sequences, num_rows, num_hidden;
    const int64_t *input_ids, *positions, *slots; /* [T] */
    const int32_t *query_lens;                    /* [S] new tokens */
    const int32_t *pages, *page_starts;           /* sequence s: pages[page_starts[s] ..] */
    const int64_t *rows;                          /* [R + num_hidden] places in T: for logits, then for states */
    float *logits;                                /* [R, vocab_size] */
    float *hidden;                                /* [num_hidden, hidden] after the final norm */
} Step;

enum { LINEARS, ATTENTION, OTHER, NUM_PARTS };

typedef struct {
    int sequence, token, row, count; /* query rows `row ..` of the sequence whose first token is `token` */
} Piece;

typedef struct {
    Config config;
    Pool pool;
    const Step *step;
    float *residual, *qkv, *attended; /* [T, hidden], [T, qkv rows padded], [T, heads * head_dim] */
    int qkv_width, mid_blocks;
    Input normed, heads, mid; /* of T tokens: what products of hidden states, of attention and `down` read */
    Input *own_normed, *own_heads; /* of one token, one per thread */
    AttentionScratch **scratch; /* one per thread */
    Piece *pieces;
    int num_pieces, one_piece_each;
    double seconds[NUM_PARTS];
    struct timespec mark;
} Model;

static void lap(Model *model, int thread, int part) {
    if (thread != 0) return;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    model->seconds[part] += (now.tv_sec - model->mark.tv_sec) + 1e-9 * (now.tv_nsec - model->mark.tv_nsec);
    model->mark = now;
}

static void meet(Model *model, int thread, int part) {
    pool_barrier(&model->pool);
    lap(model, thread, part);
}

/* ---- input of products ---- */

static int input_allocate(Input *input, int tokens, int blocks) {
    input->tile = tokens == 1 ? 1 : TILE;
    size_t count = (size_t)(tokens + input->tile - 1) / input->tile * input->tile * blocks;
    input->blocks = blocks;
    input->x = allocate(count * BLOCK * 4);
    input->q = allocate(count * CODE_BYTES);
    input->scale = allocate(count * 4);
    input->scaled_sum = allocate(count * 4);
    input->sum = allocate(count * 4);
    return input->x && input->q && input->scale && input->scaled_sum && input->sum ? 0 : -1;
}

static void input_free(Input *input) {
    free(input->x);
    free(input->q);
    free(input->scale);
    free(input->scaled_sum);
    free(input->sum);
}

/* Store `x * factor * weight` (weight NULL: `x`), `[cols]`, as token `t` of a product of `tokens` tokens. */
static void prepare(
    const Input *input, const Linear *linear, int tokens, int t, const float *x, float factor, const float *weight) {
    int is_tiled = uses_tiles(linear->format, tokens);
    for (int b = 0; b < input->blocks; b++) {
        int from = b * BLOCK, count = linear->cols - from < BLOCK ? linear->cols - from : BLOCK;
        float part[BLOCK] = {0}, scale[BLOCK] = {0};
        const float *values = x + from, *weights = weight ? weight + from : NULL;
        if (count < BLOCK) {
            values = memcpy(part, values, sizeof(float) * count);
            if (weights) weights = memcpy(scale, weights, sizeof(float) * count);
        }
        f32x16 low = load(values), high = load(values + LANES);
        if (weights) {
            low = low * factor * load(weights);
            high = high * factor * load(weights + LANES);
        }
        input_block(input, linear->format, is_tiled, t, b, low, high);
    }
}

static float rms_factor(const float *x, int size, float eps) {
    f32x16 sums = splat(0);
    int i = 0;
    for (; i + LANES <= size; i += LANES) sums += load(x + i) * load(x + i);
    float sum = sum_lanes(sums);
    for (; i < size; i++) sum += x[i] * x[i];
    return 1 / sqrtf(sum / size + eps);
}

/* Prepare `[tokens, linear->cols]` floats for `linear`, normalised when there is a `norm`. A thread takes a whole tile,
 * whose tokens' scales share cache lines, which would go to and fro between two. One token every thread prepares for
 * itself, in its `own` input: that is faster than to wait for another. */
static const Input *prepare_all(
    Model *model, int thread, const Linear *linear, const float *x, const float *norm, const Input *shared,
    const Input *own) {
    int tokens = model->step->num_tokens, alone = tokens == 1;
    const Input *input = alone ? own : shared;
    for (int t0 = alone ? 0 : pool_take(&model->pool, TILE); t0 < tokens;
         t0 = alone ? 1 : pool_take(&model->pool, TILE))
        for (int t = t0; t < t0 + TILE && t < tokens; t++) {
            const float *row = x + (size_t)t * linear->cols;
            float factor = norm ? rms_factor(row, linear->cols, model->config.eps) : 1;
            prepare(input, linear, tokens, t, row, factor, norm);
        }
    if (alone) lap(model, thread, OTHER);
    else meet(model, thread, OTHER);
    return input;
}

/* ---- products ---- */

enum { SET, ADD };

/* Work is cut into `units`, of some groups of rows and a chunk of tokens; neighbours share the tokens. */
typedef struct {
    int units, in_chunk, groups; /* all units, those of a chunk, groups of a unit */
} Cut;

static Cut cut_product(const Model *model, int groups, int tokens, int least) {
    int chunks = (tokens + CHUNK - 1) / CHUNK, share = pool_share(&model->pool, groups * chunks);
    int each = share > GROUPS ? GROUPS : share < least ? least : share;
    int in_chunk = (groups + each - 1) / each;
    return (Cut){in_chunk * chunks, in_chunk, each};
}

/* `to[t][row]` = or += the product with `tokens` tokens; `stride` floats part the tokens. */
static void multiply(
    Model *model, int thread, const Linear *linear, const Input *input, int tokens, float *to, size_t stride, int how) {
    int groups = linear_groups(linear), is_tiled = uses_tiles(linear->format, tokens);
    Cut cut = cut_product(model, groups, tokens, 1);
    int share = pool_share(&model->pool, cut.units);
    f32x16 out[GROUPS][CHUNK];
    for (int first = pool_take(&model->pool, share); first < cut.units; first = pool_take(&model->pool, share))
        for (int unit = first; unit < first + share && unit < cut.units; unit++) {
            int t0 = unit / cut.in_chunk * CHUNK, g0 = unit % cut.in_chunk * cut.groups;
            int count = tokens - t0 < CHUNK ? tokens - t0 : CHUNK;
            int several = groups - g0 < cut.groups ? groups - g0 : cut.groups;
            linear_product(linear, g0, several, input, is_tiled, t0, count, out);
            for (int g = 0; g < several; g++) {
                int row = (g0 + g) * LANES, width = linear->rows - row < LANES ? linear->rows - row : LANES;
                const float *bias = linear->bias ? linear->bias + row : NULL;
                for (int t = 0; t < count; t++) {
                    float *at = to + (size_t)(t0 + t) * stride + row;
                    if (width == LANES) {
                        f32x16 value = bias ? out[g][t] + load(bias) : out[g][t];
                        store(at, how == ADD ? load(at) + value : value);
                        continue;
                    }
                    for (int i = 0; i < width; i++) {
                        float value = out[g][t][i] + (bias ? bias[i] : 0);
                        at[i] = how == ADD ? at[i] + value : value;
                    }
                }
            }
        }
    meet(model, thread, LINEARS);
}

/* The gated half of the MLP: blocks of 32 of silu(gate) * up, at once in the form that `down` reads. */
static void multiply_gated(Model *model, int thread, const Layer *layer, const Input *input, int tokens) {
    const Linear *linear = &layer->gate_up;
    int blocks = model->mid_blocks, chunks = (tokens + CHUNK - 1) / CHUNK, units = blocks * chunks;
    int is_tiled = uses_tiles(linear->format, tokens), down_is_tiled = uses_tiles(layer->down.format, tokens);
    int share = pool_share(&model->pool, units);
    f32x16 out[GROUPS][CHUNK];
    for (int first = pool_take(&model->pool, share); first < units; first = pool_take(&model->pool, share))
        for (int unit = first; unit < first + share && unit < units; unit++) {
            int t0 = unit / blocks * CHUNK, b = unit % blocks;
            int count = tokens - t0 < CHUNK ? tokens - t0 : CHUNK;
            linear_product(linear, b * GROUPS, GROUPS, input, is_tiled, t0, count, out);
            for (int part = 0; part < GROUPS && linear->bias; part++)
                for (int t = 0; t < count; t++) out[part][t] += load(linear->bias + (b * GROUPS + part) * LANES);
            for (int t = 0; t < count; t++) {
                f32x16 low = out[0][t] / (1 + exp_each(-out[0][t])) * out[1][t];
                f32x16 high = out[2][t] / (1 + exp_each(-out[2][t])) * out[3][t];
                input_block(&model->mid, layer->down.format, down_is_tiled, t0 + t, b, low, high);
            }
        }
    meet(model, thread, LINEARS);
}

/* ---- attention ---- */

static AttentionPlace attention_place(const Model *model, const Layer *layer, int kv_head, const int32_t *pages) {
    const Config *config = &model->config;
    return (AttentionPlace){config->kv_heads, config->head_dim, config->page_size, config->kv_is_bf16, kv_head,
                            layer->keys, layer->values, pages};
}

/* Normalise (where the model does) and rotate one head in place. */
static void rotate(const Config *config, float *head, int64_t position, const float *norm) {
    int dim = config->head_dim, half = dim / 2;
    const float *cos = config->cos + position * half, *sin = config->sin + position * half;
    if (norm) {
        float factor = rms_factor(head, dim, config->eps);
        for (int d = 0; d < dim; d++) head[d] *= factor * norm[d];
    }
    for (int d = 0; d < half; d++) {
        float low = head[d], high = head[d + half];
        head[d] = low * cos[d] - high * sin[d];
        head[d + half] = high * cos[d] + low * sin[d];
    }
}

/* Rotate the queries and the key of token `t` under one key head, and store its key and value. */
static void rotate_and_store(Model *model, const Layer *layer, int t, int kv_head) {
    const Config *config = &model->config;
    const Step *step = model->step;
    int dim = config->head_dim, size = config->page_size, shared = config->heads / config->kv_heads;
    float *row = model->qkv + (size_t)t * model->qkv_width;
    float *query = row + kv_head * shared * dim, *key = row + (config->heads + kv_head) * dim;
    const float *value = key + config->kv_heads * dim;
    for (int h = 0; h < shared; h++) {
        rotate(config, query + h * dim, step->positions[t], layer->q_norm);
        for (int d = 0; d < dim; d++) query[h * dim + d] *= config->scale;
    }
    rotate(config, key, step->positions[t], layer->k_norm);
    AttentionPlace at = attention_place(model, layer, kv_head, NULL);
    write_kv(
        &at, (int)(step->slots[t] / size), (int)(step->slots[t] % size), key, value, layer->keys, layer->values);
}

/* Store all tokens before any attends to them. Where each sequence has one token, the thread that attends with it
 * stores it, and nobody has to wait. */
static void store_all(Model *model, int thread, const Layer *layer) {
    int kv_heads = model->config.kv_heads, total = model->step->num_tokens * kv_heads;
    int share = pool_share(&model->pool, total);
    if (model->one_piece_each) return;
    for (int first = pool_take(&model->pool, share); first < total; first = pool_take(&model->pool, share))
        for (int item = first; item < first + share && item < total; item++)
            rotate_and_store(model, layer, item / kv_heads, item % kv_heads);
    meet(model, thread, ATTENTION);
}

/* Cut the batch into pieces of a few query rows; a sequence's rows under one key head are its tokens times the
 * heads that share the key head. */
static int cut_pieces(Model *model, Piece *pieces) {
    const Step *step = model->step;
    int shared = model->config.heads / model->config.kv_heads, count = 0, token = 0;
    for (int s = 0; s < step->num_sequences; token += step->query_lens[s], s++)
        for (int row = 0; row < step->query_lens[s] * shared; row += ATTENTION_ROWS, count++) {
            int left = step->query_lens[s] * shared - row;
            pieces[count] = (Piece){s, token, row, left < ATTENTION_ROWS ? left : ATTENTION_ROWS};
        }
    return count;
}

/* The query rows of one piece, under one key head. */
static void attend_piece(Model *model, int thread, const Layer *layer, int kv_head, Piece piece) {
    const Config *config = &model->config;
    const Step *step = model->step;
    int shared = config->heads / config->kv_heads, dim = config->head_dim;
    AttentionRows *rows = &model->scratch[thread]->rows;
    float *outputs[ATTENTION_ROWS];
    if (model->one_piece_each) rotate_and_store(model, layer, piece.token, kv_head);
    for (int r = 0; r < piece.count; r++) {
        int token = piece.token + (piece.row + r) / shared, head = kv_head * shared + (piece.row + r) % shared;
        int position = (int)step->positions[token];
        memcpy(rows->query[r], model->qkv + (size_t)token * model->qkv_width + head * dim, sizeof(float) * dim);
        outputs[r] = model->attended + ((size_t)token * config->heads + head) * dim;
        rows->end[r] = position + 1;
        rows->first[r] = layer->window > 0 && position >= layer->window ? position + 1 - layer->window : 0;
    }
    AttentionPlace at = attention_place(model, layer, kv_head, step->pages + step->page_starts[piece.sequence]);
    attention_rows(&at, model->scratch[thread], piece.count);
    for (int r = 0; r < piece.count; r++) memcpy(outputs[r], rows->output[r], sizeof(float) * dim);
}

static void attend_all(Model *model, int thread, const Layer *layer) {
    int kv_heads = model->config.kv_heads, total = model->num_pieces * kv_heads;
    /* In a decode a thread takes all of a sequence's key heads, which lie side by side in its pages; with fewer
     * sequences, and for the pieces of a prompt, which share pages, neighbours share a key head. */
    int by_sequence = model->one_piece_each && model->num_pieces >= 4 * model->pool.size;
    int share = by_sequence ? kv_heads : 1;
    for (int first = pool_take(&model->pool, share); first < total; first = pool_take(&model->pool, share))
        for (int item = first; item < first + share; item++) {
            int kv_head = by_sequence ? item % kv_heads : item / model->num_pieces;
            attend_piece(
                model, thread, layer, kv_head,
                model->pieces[by_sequence ? item / kv_heads : item % model->num_pieces]);
        }
    meet(model, thread, ATTENTION);
}

/* ---- the pass ---- */

static void embed(Model *model, int thread) {
    const Step *step = model->step;
    int hidden = model->config.hidden;
    for (int t = pool_take(&model->pool, 1); t < step->num_tokens; t = pool_take(&model->pool, 1))
        linear_row(&model->config.embed, (int)step->input_ids[t], model->residual + (size_t)t * hidden);
    if (thread == 0) {
        model->num_pieces = cut_pieces(model, model->pieces);
        model->one_piece_each = step->num_tokens == step->num_sequences && model->num_pieces == step->num_tokens;
    }
    meet(model, thread, OTHER);
}

/* Normalise the rows asked for, and multiply those that need logits with the output embedding. */
static void finish(Model *model, int thread) {
    const Config *config = &model->config;
    const Step *step = model->step;
    int hidden = config->hidden, total = step->num_rows + step->num_hidden;
    for (int first = pool_take(&model->pool, TILE); first < total; first = pool_take(&model->pool, TILE))
        for (int r = first; r < first + TILE && r < total; r++) {
            const float *row = model->residual + (size_t)step->rows[r] * hidden;
            float factor = rms_factor(row, hidden, config->eps);
            if (r < step->num_rows) {
                prepare(&model->normed, &config->head, step->num_rows, r, row, factor, config->norm);
                continue;
            }
            float *to = step->hidden + (size_t)(r - step->num_rows) * hidden;
            for (int k = 0; k < hidden; k++) to[k] = row[k] * factor * config->norm[k];
        }
    meet(model, thread, OTHER);
    if (step->num_rows > 0)
        multiply(model, thread, &config->head, &model->normed, step->num_rows, step->logits, config->head.rows, SET);
}

static void forward(void *argument, int thread) {
    Model *model = argument;
    const Config *config = &model->config;
    const Input *own_normed = &model->own_normed[thread], *own_heads = &model->own_heads[thread];
    int tokens = model->step->num_tokens;
    if (thread == 0) clock_gettime(CLOCK_MONOTONIC, &model->mark);
    embed(model, thread);
    for (int i = 0; i < config->num_layers; i++) {
        const Layer *layer = &config->layers[i];
        const Input *input = prepare_all(
            model, thread, &layer->qkv, model->residual, layer->input_norm, &model->normed, own_normed);
        multiply(model, thread, &layer->qkv, input, tokens, model->qkv, model->qkv_width, SET);
        store_all(model, thread, layer);
        attend_all(model, thread, layer);
        input = prepare_all(model, thread, &layer->o, model->attended, NULL, &model->heads, own_heads);
        multiply(model, thread, &layer->o, input, tokens, model->residual, config->hidden, ADD);
        input = prepare_all(
            model, thread, &layer->gate_up, model->residual, layer->post_norm, &model->normed, own_normed);
        multiply_gated(model, thread, layer, input, tokens);
        multiply(model, thread, &layer->down, &model->mid, tokens, model->residual, config->hidden, ADD);
    }
    finish(model, thread);
    tiles_end();
}

/* ---- what Python calls ---- */

/* Sizes of the structures, to be compared with Python's. */
void model_sizes(int32_t *sizes) {
    sizes[0] = sizeof(Linear);
    sizes[1] = sizeof(Layer);
    sizes[2] = sizeof(Config);
    sizes[3] = sizeof(Step);
}

static void model_free(Model *model) {
    for (int i = 0; i < model->config.num_threads; i++) {
        if (model->own_normed) input_free(&model->own_normed[i]);
        if (model->own_heads) input_free(&model->own_heads[i]);
        if (model->scratch) free(model->scratch[i]);
    }
    input_free(&model->normed);
    input_free(&model->heads);
    input_free(&model->mid);
    free(model->own_normed);
    free(model->own_heads);
    free(model->scratch);
    free(model->residual);
    free(model->qkv);
    free(model->attended);
    free(model->pieces);
    free(model);
}

void model_destroy(Model *model) {
    pool_stop(&model->pool);
    model_free(model);
}

/* Make a model; all that `config` points to must outlive it. NULL: there is no memory. */
Model *model_create(const Config *config) {
    Model *model = allocate(sizeof(Model));
    if (!model) return NULL;
    model->config = *config;
    int tokens = config->max_tokens, threads = config->num_threads, width = config->heads * config->head_dim, ok;
    int blocks = (config->hidden + BLOCK - 1) / BLOCK, head_blocks = (width + BLOCK - 1) / BLOCK;
    model->qkv_width = width + 2 * config->kv_heads * config->head_dim;
    model->mid_blocks = (config->intermediate + BLOCK - 1) / BLOCK;
    model->residual = allocate((size_t)tokens * config->hidden * 4);
    model->qkv = allocate((size_t)tokens * model->qkv_width * 4);
    model->attended = allocate((size_t)tokens * width * 4);
    /* Every sequence may leave a piece that is not full. */
    size_t pieces = (size_t)tokens * (config->heads / config->kv_heads) / ATTENTION_ROWS + tokens;
    model->pieces = allocate(pieces * sizeof(Piece));
    model->own_normed = allocate(threads * sizeof(Input));
    model->own_heads = allocate(threads * sizeof(Input));
    model->scratch = allocate(threads * sizeof(AttentionScratch *));
    ok = model->residual && model->qkv && model->attended && model->pieces && model->own_normed &&
         model->own_heads && model->scratch;
    ok = ok && input_allocate(&model->normed, tokens, blocks) == 0;
    ok = ok && input_allocate(&model->heads, tokens, head_blocks) == 0;
    ok = ok && input_allocate(&model->mid, tokens, model->mid_blocks) == 0;
    for (int i = 0; ok && i < threads; i++) {
        model->scratch[i] = allocate(sizeof(AttentionScratch));
        ok = model->scratch[i] && input_allocate(&model->own_normed[i], 1, blocks) == 0 &&
             input_allocate(&model->own_heads[i], 1, head_blocks) == 0;
    }
    if (!ok) {
        model_free(model);
        return NULL;
    }
    tiles_request();
    pool_start(&model->pool, threads, forward, model);
    return model;
}

/* Compute one step, as its structure says. */
void model_forward(Model *model, const Step *step) {
    model->step = step;
    pool_run(&model->pool);
}

/* Write the seconds spent in products, attention and the rest since the last call; the clock starts anew. */
void model_seconds(Model *model, double *seconds) {
    memcpy(seconds, model->seconds, sizeof(model->seconds));
    memset(model->seconds, 0, sizeof(model->seconds));
}

/* For tests: multiply `[tokens, cols]` floats with packed weights in the caller's thread. */
int linear_multiply(const Linear *linear, const float *x, int tokens, float *to) {
    Input input;
    f32x16 out[GROUPS][CHUNK];
    int groups = linear_groups(linear);
    if (input_allocate(&input, tokens, linear_blocks(linear)) != 0) return -1;
    tiles_request();
    for (int t = 0; t < tokens; t++) prepare(&input, linear, tokens, t, x + (size_t)t * linear->cols, 1, NULL);
    for (int t0 = 0; t0 < tokens; t0 += CHUNK)
        for (int first = 0; first < groups; first += GROUPS) {
            int count = tokens - t0 < CHUNK ? tokens - t0 : CHUNK;
            int several = groups - first < GROUPS ? groups - first : GROUPS;
            linear_product(linear, first, several, &input, uses_tiles(linear->format, tokens), t0, count, out);
            for (int t = 0; t < count; t++)
                for (int i = 0; i < several * LANES && first * LANES + i < linear->rows; i++)
                    to[(size_t)(t0 + t) * linear->rows + first * LANES + i] = out[i / LANES][t][i % LANES];
        }
    tiles_end();
    input_free(&input);
    return 0;
}
