/* A pool of threads that run one function together and meet at barriers.
 *
 * Whoever waits spins for a bounded time, as the others are microseconds away on a quiet machine, and then
 * sleeps: on a busy one, a spinning waiter would keep from the CPU the very thread it waits for.
 */
#ifndef MYLLM_POOL_H
#define MYLLM_POOL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "vectors.h"

#define MOST_SPINS 1000 /* 20 to 60 microseconds, as long as waking a sleeper takes */
#define LEAST_SPINS 250 /* longer than threads of a quiet machine are apart, or nobody would ever spin again */

/* How long this thread spins: less each time that it was in vain, as on a busy machine, and more when it was not. */
static _Thread_local int spins = MOST_SPINS;

typedef struct Pool {
    int size;
    _Alignas(64) atomic_int generation; /* of the barrier; counts how often all have met */
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int next; /* first piece of work nobody has taken since the last barrier */
    _Alignas(64) atomic_int sleepers;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int stop, started;
    pthread_t *threads;
    void (*run)(void *argument, int thread);
    void *argument;
} Pool;

INLINE void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void pool_barrier(Pool *pool) {
    if (pool->size == 1) {
        atomic_store(&pool->next, 0);
        return;
    }
    int generation = atomic_load(&pool->generation);
    if (atomic_fetch_add(&pool->arrived, 1) == pool->size - 1) {
        atomic_store(&pool->arrived, 0);
        atomic_store(&pool->next, 0);
        atomic_store(&pool->generation, generation + 1);
        if (atomic_load(&pool->sleepers) > 0) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_broadcast(&pool->wake);
            pthread_mutex_unlock(&pool->lock);
        }
        return;
    }
    for (int i = 0; i < spins; i++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != generation) {
            spins = spins * 2 < MOST_SPINS ? spins * 2 : MOST_SPINS;
            return;
        }
        relax();
    }
    spins = spins / 2 > LEAST_SPINS ? spins / 2 : LEAST_SPINS;
    pthread_mutex_lock(&pool->lock);
    /* Counted before the generation is read again, and read after it is written: one of the two sees. */
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->generation) == generation) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

/* Take the next `count` pieces of work of this phase; returns the first. Barriers begin a new phase. */
INLINE int pool_take(Pool *pool, int count) { return atomic_fetch_add(&pool->next, count); }

/* A share of `count` pieces small enough that a thread that was held up does not hold up all. */
INLINE int pool_share(const Pool *pool, int count) {
    int share = count / (pool->size * 6);
    return share < 1 ? 1 : share;
}

typedef struct {
    Pool *pool;
    int thread;
} PoolThread;

static void *pool_loop(void *argument) {
    PoolThread self = *(PoolThread *)argument;
    free(argument);
    for (;;) {
        pool_barrier(self.pool);
        if (self.pool->stop) return NULL;
        self.pool->run(self.pool->argument, self.thread);
        pool_barrier(self.pool);
    }
}

/* Run the pool's function in all threads, the caller's included. */
static void pool_run(Pool *pool) {
    pool_barrier(pool);
    pool->run(pool->argument, 0);
    pool_barrier(pool);
}

static void pool_stop(Pool *pool) {
    if (pool->size > 1) {
        pool->stop = 1;
        pool_barrier(pool);
        for (int i = 0; i < pool->started; i++) pthread_join(pool->threads[i], NULL);
    }
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->threads);
}

static void pool_start(Pool *pool, int size, void (*run)(void *, int), void *argument) {
    pool->run = run;
    pool->argument = argument;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = calloc(size, sizeof(pthread_t));
    pool->size = size;
    for (int i = 1; i < size; i++) {
        PoolThread *self = malloc(sizeof(PoolThread));
        *self = (PoolThread){pool, i};
        if (pthread_create(&pool->threads[pool->started], NULL, pool_loop, self) != 0) abort();
        pool->started++;
    }
}

#endif
