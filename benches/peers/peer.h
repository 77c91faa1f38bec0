// What the CPU programs share: the command line, sizes and shapes, how often to measure, inputs
// whose results are known. Valid as C11 and as C++17.
//
// Sizes, shapes and the rule for iterations are those of `collectives perf` for a loop
// (crates/collectives-cli/src/perf), so that a line here and a row there mean the same.

#ifndef PEER_H
#define PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Exit codes beside 0.
enum { WRONG_DATA = 1, BAD_USAGE = 2, UNSUPPORTED = 3, FAILED = 4 };

enum operation { ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, SEND_RECV, OPERATIONS };

struct options {
    enum operation operation;
    size_t min, max; // bytes of the largest buffer of any rank
    int ranks;       // 0: not given
    int threads;     // 0: not given
    int iterations;  // 0: not given
    int warmup;      // -1: not given
    bool sync_each;
};

// How many elements the buffers of a rank hold.
struct shape {
    size_t count;   // of one part
    size_t send;    // of the input
    size_t recv;    // of the result
    size_t largest; // the larger of the two on any rank: what is called the size
};

// A size, and how often.
struct repeated {
    struct shape shape;
    int times;
};

// Sizes double, so an address space has no more.
enum { MAX_SIZES = 64 };

struct plan {
    struct repeated sizes[MAX_SIZES];
    int number;     // of sizes
    size_t largest; // elements of each buffer
};

static inline const char *operation_name(enum operation operation) {
    static const char *const names[OPERATIONS] = {"all_reduce", "all_gather", "reduce_scatter",
                                                  "broadcast", "send_recv"};
    return names[operation];
}

// Parts are rounded down to 16 bytes, as in nccl-tests, so that all start aligned. What would be
// less is not rounded, and at least one element.
static inline struct shape shape_of(enum operation operation, size_t bytes, size_t ranks) {
    bool parts = operation == ALL_GATHER || operation == REDUCE_SCATTER;
    size_t part = parts ? bytes / ranks : bytes;
    if (parts && part >= 16) {
        part &= ~(size_t)15;
    }
    size_t count = part / sizeof(float);
    count = count == 0 ? 1 : count;
    size_t largest = parts ? count * ranks : count;
    struct shape shape = {count, operation == ALL_GATHER ? count : largest,
                          operation == REDUCE_SCATTER ? count : largest, largest};
    return shape;
}

// About as many bytes for each size, so that every size takes a comparable time, within bounds
// that keep the mean of small sizes steady and large sizes short. Cores are shared: an operation of
// more ranks takes longer.
static inline int iterations(const struct options *options, size_t bytes, int ranks) {
    if (options->iterations > 0) {
        return options->iterations;
    }
    const size_t budget = ((size_t)512 << 20) / (size_t)ranks, least = 10;
    size_t most = 400000 / (size_t)ranks, times = budget / bytes;
    times = times > most ? most : times;
    return (int)(times < least ? least : times);
}

// Calls of each size that are timed before the measurement, to see how many are affordable. One
// that is not timed goes before them: it may still connect something.
enum { SAMPLE = 3 };

// Fewer, if one call takes so many seconds that a size would take long: with more ranks than cores,
// a library whose ranks never sleep can need 25 ms for 8 bytes.
static inline int affordable(const struct options *options, int times, double seconds) {
    const double most = 0.25, least = 10;
    double enough = most / seconds < least ? least : most / seconds;
    return options->iterations > 0 || (double)times <= enough ? times : (int)enough;
}

// What is left to warm up after the sample.
static inline int warmup(const struct options *options, int times) {
    int tenth = times / 10;
    int wanted = options->warmup >= 0 ? options->warmup : tenth < 5 ? 5 : tenth;
    return wanted < SAMPLE + 1 ? 0 : wanted - (SAMPLE + 1);
}

// Sizes that come to the same count are measured once.
static inline struct plan plan_of(const struct options *options, int ranks) {
    struct plan plan;
    memset(&plan, 0, sizeof plan);
    size_t previous = 0;
    for (size_t bytes = options->min; bytes <= options->max; bytes *= 2) {
        struct shape shape = shape_of(options->operation, bytes, (size_t)ranks);
        if (shape.count != previous) {
            previous = shape.count;
            struct repeated *size = &plan.sizes[plan.number++];
            size->shape = shape;
            size->times = iterations(options, shape.largest * sizeof(float), ranks);
        }
    }
    // Not those of the last measured size: -e need not be a doubling of -b.
    plan.largest = shape_of(options->operation, options->max, (size_t)ranks).largest;
    return plan;
}

// Where the call after the one at `at` works. Calls move on through buffers of the largest size,
// and start over at their end, so that small operations do not find their operands in a cache for
// no other reason than being repeated.
static inline size_t next_place(const struct plan *plan, const struct shape *shape, size_t at) {
    at += shape->largest;
    return at + shape->largest <= plan->largest ? at : 0;
}

// Small integers, so that sums of many ranks are exact in any order, and noise, so that an element
// that is lost, doubled or misplaced shows.
static inline float input(int rank, size_t index) {
    uint64_t noise = ((uint64_t)rank << 40 ^ index) * UINT64_C(0x9e3779b97f4a7c15);
    return (float)(uint32_t)(noise >> 48);
}

static inline float reduced(int ranks, size_t index) {
    float sum = 0;
    for (int rank = 0; rank < ranks; rank++) {
        sum += input(rank, index);
    }
    return sum;
}

// What `rank` must have at `index` of its result.
static inline float expected(enum operation operation, size_t count, int ranks, int rank,
                             size_t index) {
    switch (operation) {
    case ALL_REDUCE: return reduced(ranks, index);
    case ALL_GATHER: return input((int)(index / count), index % count);
    case REDUCE_SCATTER: return reduced(ranks, (size_t)rank * count + index);
    case BROADCAST: return input(0, index);
    default: return input((rank + ranks - 1) % ranks, index);
    }
}

// Whether the result is right; says on standard error where it is not.
static inline bool is_right(enum operation operation, const struct shape *shape, int ranks,
                            int rank, const float *recv) {
    for (size_t i = 0; i < shape->recv; i++) {
        float want = expected(operation, shape->count, ranks, rank, i);
        if (recv[i] != want) {
            fprintf(stderr, "%s, rank %d of %d: element %zu of %zu is %g, want %g\n",
                    operation_name(operation), rank, ranks, i, shape->recv, (double)recv[i],
                    (double)want);
            return false;
        }
    }
    return true;
}

// Pages are touched here, so that none is touched first inside the timing.
static inline float *allocate(size_t elements) {
    const size_t page = 4096;
    size_t bytes = (elements * sizeof(float) + page - 1) / page * page;
    float *memory = (float *)aligned_alloc(page, bytes);
    if (memory == NULL) {
        fprintf(stderr, "no memory for a buffer of %zu bytes; choose a smaller -e\n", bytes);
        exit(BAD_USAGE);
    }
    memset(memory, 0, bytes);
    return memory;
}

static inline float *allocate_input(int rank, size_t elements) {
    float *memory = allocate(elements);
    for (size_t i = 0; i < elements; i++) {
        memory[i] = input(rank, i);
    }
    return memory;
}

// Not-a-numbers, so that what an operation does not write is wrong.
static inline void clear(float *memory, size_t elements) {
    memset(memory, 0xff, elements * sizeof(float));
}

static inline unsigned long long number_argument(const char *name, const char *text,
                                                 unsigned long long least,
                                                 unsigned long long most) {
    char *end = NULL;
    unsigned long long number = text == NULL ? 0 : strtoull(text, &end, 10);
    if (text == NULL || end == text || *end != '\0' || number < least || number > most) {
        fprintf(stderr, "%s '%s': want a number from %llu to %llu\n", name,
                text == NULL ? "" : text, least, most);
        exit(BAD_USAGE);
    }
    return number;
}

// Ends the program where the command line is wrong. `usage` is its form.
static inline struct options parse(int argc, char **argv, const char *usage) {
    const unsigned long long largest = 1ULL << 32;
    struct options options = {OPERATIONS, 8, (size_t)64 << 20, 0, 0, 0, -1, false};
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = argv[i + 1];
        if (strcmp(name, "--sync-each") == 0) {
            options.sync_each = true;
            continue;
        }
        if (name[0] != '-' && options.operation == OPERATIONS) {
            int operation = 0;
            while (operation < OPERATIONS &&
                   strcmp(name, operation_name((enum operation)operation)) != 0) {
                operation++;
            }
            options.operation = (enum operation)operation;
            if (operation < OPERATIONS) {
                continue;
            }
            printf("# unsupported: %s\n", name);
            exit(UNSUPPORTED);
        }
        if (strcmp(name, "-b") == 0) {
            options.min = (size_t)number_argument(name, value, 1, largest);
        } else if (strcmp(name, "-e") == 0) {
            options.max = (size_t)number_argument(name, value, 1, largest);
        } else if (strcmp(name, "-n") == 0) {
            options.ranks = (int)number_argument(name, value, 1, 256);
        } else if (strcmp(name, "--threads") == 0) {
            options.threads = (int)number_argument(name, value, 1, 256);
        } else if (strcmp(name, "--iters") == 0) {
            options.iterations = (int)number_argument(name, value, 1, 1000000000);
        } else if (strcmp(name, "--warmup") == 0) {
            options.warmup = (int)number_argument(name, value, 0, 1000000000);
        } else {
            fprintf(stderr, "'%s' is no argument; usage: %s\n", name, usage);
            exit(BAD_USAGE);
        }
        i++;
    }
    if (options.operation == OPERATIONS || options.min > options.max) {
        fprintf(stderr, "want an operation, and -b not above -e; usage: %s\n", usage);
        exit(BAD_USAGE);
    }
    return options;
}

static inline void print_settings(const struct options *options, const char *library, int ranks) {
    printf("# library: %s\n# operation: %s\n# ranks: %d\n# mode: %s\n# placement: %s\n"
           "# columns: bytes us\n",
           library, operation_name(options->operation), ranks,
           options->sync_each ? "sync-each" : "loop",
           options->operation == BROADCAST ? "in place" : "out of place");
    fflush(stdout);
}

#endif
