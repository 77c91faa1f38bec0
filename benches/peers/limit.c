// What this machine could reach: the best time for an operation that any CPU implementation can
// hope for, since it does nothing but what the operation cannot do without.
//
//     cc -std=c11 -O3 -march=native -pthread -o limit benches/peers/limit.c
//     ./limit all_reduce -n 2 [-b BYTES] [-e BYTES] [--threads T]
//
// Definition. P ranks' buffers lie in one address space, and T threads (one for each core that the
// process may use, at most P), each bound to a core of its own, split the operation among them:
//
//   1. Each input byte is read once, added up in registers where the operation adds, and each
//      output byte is written once. S is the size (bytes of the largest buffer of any rank):
//
//        operation        read      written
//        all_reduce       P S       P S
//        all_gather       S         P S
//        reduce_scatter   P S       S
//        broadcast        S         (P - 1) S     in place: the root has its data already
//        send_recv        P S       P S
//
//   2. One barrier of the T threads ends each operation: each writes its flag, a cache line of its
//      own, and waits for the others'. An operation needs at least that, since nobody's result is
//      there before everybody's input is. It bounds small sizes. Threads never sleep.
//
// Nothing is copied twice, allocated, locked, looked up, queued or checked, and no other process
// is spoken to. Operations move through buffers of the largest size like everywhere here, so small
// sizes are read from caches as far as they fit there, large ones from memory. --sync-each measures
// the same: each operation is waited for.
//
// Each size is measured with ordinary and with non-temporal stores (which spare the read of a line
// that is to be overwritten, but bypass the caches), in several rounds each, and the fastest round
// is reported: this is a bound, not a mean. Like every measurement it is one of a machine and a
// compiler, and code that beats it somewhere only shows that the bound can be drawn tighter. A
// library that is asynchronous may do so for small sizes in a loop, where several operations can
// share a barrier. It needs a quiet machine: a thread that is kept from its core keeps the others.

#define _GNU_SOURCE // sched_getaffinity and its like

#include "peer.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// A register full of floats, and the two ways to store it.
#if defined(__AVX512F__)
#define ISA "AVX-512"
typedef __m512 vector;
static inline vector load(const float *at) { return _mm512_loadu_ps(at); }
static inline vector add(vector a, vector b) { return _mm512_add_ps(a, b); }
static inline void store(float *at, vector v) { _mm512_storeu_ps(at, v); }
static inline void stream(float *at, vector v) { _mm512_stream_ps(at, v); }
#elif defined(__AVX__)
#define ISA "AVX"
typedef __m256 vector;
static inline vector load(const float *at) { return _mm256_loadu_ps(at); }
static inline vector add(vector a, vector b) { return _mm256_add_ps(a, b); }
static inline void store(float *at, vector v) { _mm256_storeu_ps(at, v); }
static inline void stream(float *at, vector v) { _mm256_stream_ps(at, v); }
#elif defined(__x86_64__)
#define ISA "SSE2"
typedef __m128 vector;
static inline vector load(const float *at) { return _mm_loadu_ps(at); }
static inline vector add(vector a, vector b) { return _mm_add_ps(a, b); }
static inline void store(float *at, vector v) { _mm_storeu_ps(at, v); }
static inline void stream(float *at, vector v) { _mm_stream_ps(at, v); }
#else
// The compiler makes vectors of the loops, and there are no stores that it would not choose.
#define ISA "no non-temporal stores"
typedef float vector;
static inline vector load(const float *at) { return *at; }
static inline vector add(vector a, vector b) { return a + b; }
static inline void store(float *at, vector v) { *at = v; }
static inline void stream(float *at, vector v) { *at = v; }
#endif

// Non-temporal stores are ordered with nothing; the flag that follows them must be.
static inline void end_of_stores(void) {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

static inline void relax(void) {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

enum {
    LINE = 64,                              // bytes of a cache line
    LANES = sizeof(vector) / sizeof(float), // floats of a register
    STEP = 256 / sizeof(float),             // floats written to one output before the next
    MAX_RANKS = 256,
    LEAST_ROUNDS = 6, // every second with non-temporal stores
    MOST_ROUNDS = 200,
};

// Seconds of measurement after which a size needs no more rounds. Rounds of small sizes are short,
// so there are many, and some of them undisturbed.
static const double ENOUGH = 0.1;

// A flag on lines of its own: adjacent lines are fetched in pairs.
struct flag {
    _Alignas(2 * LINE) atomic_uint epoch;
};

static struct options options;
static struct plan plan;
static int ranks, threads;
static float *send[MAX_RANKS], *recv[MAX_RANKS];
static struct flag flags[MAX_RANKS];
static double elapsed[MAX_RANKS]; // seconds, by thread

static void barrier(int thread, unsigned *epoch) {
    ++*epoch;
    atomic_store_explicit(&flags[thread].epoch, *epoch, memory_order_release);
    for (int peer = 0; peer < threads; peer++) {
        while ((int)(atomic_load_explicit(&flags[peer].epoch, memory_order_acquire) - *epoch) < 0) {
            relax();
        }
    }
}

// The parts of memory that one sum is made of, and those it goes to.
struct operands {
    int number_of_sources, number_of_targets;
    float *sources[MAX_RANKS], *targets[MAX_RANKS];
};

static inline void combine_element(const struct operands *operands, size_t i) {
    float sum = operands->sources[0][i];
    for (int s = 1; s < operands->number_of_sources; s++) {
        sum += operands->sources[s][i];
    }
    for (int t = 0; t < operands->number_of_targets; t++) {
        operands->targets[t][i] = sum;
    }
}

static inline void combine_registers(const struct operands *operands, size_t i, size_t registers,
                                     bool streaming) {
    vector sums[STEP / LANES];
    for (size_t r = 0; r < registers; r++) {
        sums[r] = load(operands->sources[0] + i + r * LANES);
    }
    for (int s = 1; s < operands->number_of_sources; s++) {
        for (size_t r = 0; r < registers; r++) {
            sums[r] = add(sums[r], load(operands->sources[s] + i + r * LANES));
        }
    }
    for (int t = 0; t < operands->number_of_targets; t++) {
        for (size_t r = 0; r < registers; r++) {
            float *at = operands->targets[t] + i + r * LANES;
            streaming ? stream(at, sums[r]) : store(at, sums[r]);
        }
    }
}

// Adds up the sources and writes the sum to all targets, from element `i` to `end`.
static inline void combine(const struct operands *operands, size_t i, size_t end, bool streaming) {
    const size_t misaligned = (uintptr_t)(operands->targets[0] + i) % sizeof(vector);
    for (int t = 1; t < operands->number_of_targets; t++) {
        streaming &= (uintptr_t)(operands->targets[t] + i) % sizeof(vector) == misaligned;
    }
    // Streaming needs aligned registers.
    while (i < end && (uintptr_t)(operands->targets[0] + i) % sizeof(vector) != 0) {
        combine_element(operands, i++);
    }
    for (; i + STEP <= end; i += STEP) {
        combine_registers(operands, i, STEP / LANES, streaming);
    }
    for (; i + LANES <= end; i += LANES) {
        combine_registers(operands, i, 1, streaming);
    }
    while (i < end) {
        combine_element(operands, i++);
    }
}

// A thread's share of an operation at `at`.
//
// An operation is a number of parts, each of which goes from some sources to some targets. The
// threads share the elements of all parts, in lines, since no two should write to one.
static inline void work(const struct shape *shape, size_t at, int thread, bool streaming) {
    const bool adds = options.operation == ALL_REDUCE || options.operation == REDUCE_SCATTER;
    const bool spreads = options.operation == ALL_REDUCE || options.operation == ALL_GATHER ||
                         options.operation == BROADCAST;
    const size_t count = shape->count;
    const size_t parts =
        options.operation == ALL_REDUCE || options.operation == BROADCAST ? 1 : (size_t)ranks;
    const size_t line = LINE / sizeof(float), lines = (parts * count + line - 1) / line;
    const size_t first = lines * (size_t)thread / (size_t)threads * line;
    size_t end = lines * (size_t)(thread + 1) / (size_t)threads * line;
    end = end < parts * count ? end : parts * count;

    for (size_t part = first / count; part * count < end; part++) {
        const int own = (int)part;
        const size_t start = part * count;
        const size_t source_at = at + (options.operation == REDUCE_SCATTER ? start : 0);
        const size_t target_at = at + (options.operation == ALL_GATHER ? start : 0);
        struct operands operands;
        operands.number_of_sources = adds ? ranks : 1;
        for (int s = 0; s < operands.number_of_sources; s++) {
            const int previous = (own + ranks - 1) % ranks;
            const int source = adds ? s : options.operation == SEND_RECV ? previous : own;
            operands.sources[s] = send[source] + source_at;
        }
        operands.number_of_targets = 0;
        for (int t = options.operation == BROADCAST ? 1 : 0; t < ranks; t++) {
            if (spreads || t == own) {
                operands.targets[operands.number_of_targets++] = recv[t] + target_at;
            }
        }
        if (operands.number_of_targets > 0) {
            combine(&operands, first > start ? first - start : 0,
                    end - start < count ? end - start : count, streaming);
        }
    }
    if (streaming) {
        end_of_stores();
    }
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

// Seconds of so many operations, from and to a barrier.
static double run(const struct shape *shape, int times, int thread, bool streaming,
                  unsigned *epoch) {
    barrier(thread, epoch);
    const double start = now();
    size_t at = 0;
    for (int n = 0; n < times; n++) {
        // Twice, so that the compiler decides it once for a loop and not for each register.
        if (streaming) {
            work(shape, at, thread, true);
        } else {
            work(shape, at, thread, false);
        }
        barrier(thread, epoch);
        at = next_place(&plan, shape, at);
    }
    return now() - start;
}

// The threads share the ranks whose results they clear and check.
static void check(const struct shape *shape, int thread, bool streaming, unsigned *epoch) {
    for (int rank = thread; rank < ranks; rank += threads) {
        clear(recv[rank], shape->recv);
    }
    run(shape, 1, thread, streaming, epoch);
    for (int rank = thread; rank < ranks; rank += threads) {
        const bool has_result = options.operation != BROADCAST || rank != 0;
        if (has_result && !is_right(options.operation, shape, ranks, rank, recv[rank])) {
            exit(WRONG_DATA);
        }
    }
    barrier(thread, epoch);
}

// The mean over the threads of what each has put in `elapsed`.
static double mean_elapsed(int thread, unsigned *epoch) {
    barrier(thread, epoch);
    double mean = 0;
    for (int peer = 0; peer < threads; peer++) {
        mean += elapsed[peer] / threads;
    }
    barrier(thread, epoch); // nobody measures again before all have read
    return mean;
}

static void *measure(void *number) {
    const int thread = *(int *)number;
    unsigned epoch = 0;
    int times[MAX_SIZES];
    for (int i = 0; i < plan.number; i++) {
        const struct shape *shape = &plan.sizes[i].shape;
        run(shape, 1, thread, false, &epoch);
        elapsed[thread] = run(shape, SAMPLE, thread, false, &epoch) / SAMPLE;
        times[i] = affordable(&options, plan.sizes[i].times, mean_elapsed(thread, &epoch));
        run(shape, warmup(&options, times[i]), thread, false, &epoch);
    }
    for (int i = 0; i < plan.number; i++) {
        const struct shape *shape = &plan.sizes[i].shape;
        double least = 0, spent = 0;
        // The threads see the same figures, and so come to the same end.
        for (int round = 0; round < LEAST_ROUNDS || (round < MOST_ROUNDS && spent < ENOUGH);
             round++) {
            const bool streaming = round % 2 == 1;
            if (round < 2) {
                check(shape, thread, streaming, &epoch);
            }
            run(shape, 1, thread, streaming, &epoch);
            elapsed[thread] = run(shape, times[i], thread, streaming, &epoch);
            const double mean = mean_elapsed(thread, &epoch);
            least = round == 0 || mean < least ? mean : least;
            spent += mean;
        }
        if (thread == 0) {
            printf("%zu %.4f\n", shape->largest * sizeof(float), least * 1e6 / times[i]);
            fflush(stdout);
        }
    }
    return NULL;
}

// Starts the threads, each on a core that this process may use.
static int measure_on(const cpu_set_t *cores) {
    pthread_t handles[MAX_RANKS];
    int numbers[MAX_RANKS], core = -1;
    for (int thread = 0; thread < threads; thread++) {
        do {
            core = (core + 1) % CPU_SETSIZE;
        } while (!CPU_ISSET(core, cores));
        cpu_set_t own;
        CPU_ZERO(&own);
        CPU_SET(core, &own);
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setaffinity_np(&attributes, sizeof own, &own);
        numbers[thread] = thread;
        if (pthread_create(&handles[thread], &attributes, measure, &numbers[thread]) != 0) {
            fprintf(stderr, "no thread %d of %d\n", thread, threads);
            return FAILED;
        }
        pthread_attr_destroy(&attributes);
    }
    for (int thread = 0; thread < threads; thread++) {
        pthread_join(handles[thread], NULL);
    }
    return 0;
}

int main(int argc, char **argv) {
    options = parse(argc, argv,
                    "limit OPERATION -n RANKS [-b BYTES] [-e BYTES] [--threads N] [--sync-each] "
                    "[--iters N] [--warmup N]");
    ranks = options.ranks == 0 ? 2 : options.ranks;
    cpu_set_t cores;
    CPU_ZERO(&cores);
    if (sched_getaffinity(0, sizeof cores, &cores) != 0) {
        perror("sched_getaffinity");
        return FAILED;
    }
    const int most = CPU_COUNT(&cores) < ranks ? CPU_COUNT(&cores) : ranks;
    threads = options.threads == 0 ? most : options.threads;
    if (threads > CPU_COUNT(&cores)) {
        fprintf(stderr, "--threads %d: this process may use %d cores\n", threads,
                CPU_COUNT(&cores));
        return BAD_USAGE;
    }
    plan = plan_of(&options, ranks);
    for (int rank = 0; rank < ranks; rank++) {
        send[rank] = allocate_input(rank, plan.largest);
        recv[rank] = allocate(plan.largest);
    }
    char library[64];
    snprintf(library, sizeof library, "machine limit (%d threads, %s)", threads, ISA);
    print_settings(&options, library, ranks);
    const int code = measure_on(&cores);
    for (int rank = 0; rank < ranks; rank++) {
        free(send[rank]);
        free(recv[rank]);
    }
    return code;
}
