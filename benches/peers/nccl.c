// The mock's own operations, called as C programs call NCCL: through its `libnccl.so`.
//
//     cc -std=c11 -D_GNU_SOURCE -O3 -pthread -o nccl benches/peers/nccl.c -ldl
//     ./nccl libcollectives_mock_abi.so device all_reduce [-b BYTES] [-e BYTES] [--sync-each]
//
// What it shows is what the C interface adds to the mock, so the other side is `collectives perf
// --backend mock --mode processes`. Ranks are processes that this program forks. The library is
// opened by its file, and gives the CUDA runtime's functions too.
//
//   device   buffers of ncclMemAlloc, as `collectives perf` has them, and a stream of its own
//   host     buffers of malloc, which the other ranks cannot map, and a stream of its own
//
// Out of place, but for broadcast: the root sends from its input and has no other result.

#include "peer.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Of nccl.h and of the CUDA runtime, as far as they are called here.
typedef struct { char bytes[128]; } unique_id;
enum { FLOAT32 = 7, SUM = 0 };

#define FUNCTIONS(each)                                                                           \
    each(ncclGetVersion, (int *version))                                                          \
    each(ncclGetUniqueId, (unique_id *id))                                                        \
    each(ncclCommInitRank, (void **comm, int ranks, unique_id id, int rank))                      \
    each(ncclCommDestroy, (void *comm))                                                           \
    each(ncclMemAlloc, (void **memory, size_t bytes))                                             \
    each(ncclMemFree, (void *memory))                                                             \
    each(ncclAllReduce, (const void *send, void *recv, size_t count, int type, int op,            \
                         void *comm, void *stream))                                               \
    each(ncclAllGather, (const void *send, void *recv, size_t count, int type, void *comm,        \
                         void *stream))                                                           \
    each(ncclReduceScatter, (const void *send, void *recv, size_t count, int type, int op,        \
                             void *comm, void *stream))                                           \
    each(ncclBroadcast, (const void *send, void *recv, size_t count, int type, int root,          \
                         void *comm, void *stream))                                               \
    each(ncclSend, (const void *send, size_t count, int type, int peer, void *comm,               \
                    void *stream))                                                                \
    each(ncclRecv, (void *recv, size_t count, int type, int peer, void *comm, void *stream))      \
    each(ncclGroupStart, (void))                                                                  \
    each(ncclGroupEnd, (void))                                                                    \
    each(cudaSetDevice, (int device))                                                             \
    each(cudaStreamCreate, (void **stream))                                                       \
    each(cudaStreamSynchronize, (void *stream))                                                   \
    each(cudaStreamDestroy, (void *stream))

#define DECLARE(name, arguments) static int(*name) arguments;
FUNCTIONS(DECLARE)

// What the ranks share.
struct meeting {
    pthread_barrier_t barrier;
    unique_id id;
    double told[256];
};

static struct meeting *meeting;
static int rank, ranks;
static void *comm, *stream;

// All ranks are ended by whoever waits for them.
static void check(int code, const char *call) {
    if (code != 0) {
        fprintf(stderr, "rank %d of %d: %s: code %d\n", rank, ranks, call, code);
        exit(FAILED);
    }
}
#define CHECK(call) check(call, #call)

static void open_library(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(BAD_USAGE);
    }
#define FIND(name, arguments)                                                                     \
    *(void **)&name = dlsym(library, #name);                                                      \
    if (name == NULL) {                                                                           \
        fprintf(stderr, "%s has no %s\n", path, #name);                                           \
        exit(BAD_USAGE);                                                                          \
    }
    FUNCTIONS(FIND)
}

static void meet(void) {
    pthread_barrier_wait(&meeting->barrier);
}

// What each rank tells, to all of them.
static const double *tell(double value) {
    meeting->told[rank] = value;
    meet();
    return meeting->told;
}

static int call(enum operation operation, const struct shape *shape, float *send, float *recv) {
    const size_t count = shape->count;
    switch (operation) {
    case ALL_REDUCE: return ncclAllReduce(send, recv, count, FLOAT32, SUM, comm, stream);
    case ALL_GATHER: return ncclAllGather(send, recv, count, FLOAT32, comm, stream);
    case REDUCE_SCATTER: return ncclReduceScatter(send, recv, count, FLOAT32, SUM, comm, stream);
    case BROADCAST:
        recv = rank == 0 ? send : recv;
        return ncclBroadcast(recv, recv, count, FLOAT32, 0, comm, stream);
    default: {
        const int next = (rank + 1) % ranks, previous = (rank + ranks - 1) % ranks;
        ncclGroupStart();
        // What is refused comes back from the end of the group.
        (void)ncclSend(send, count, FLOAT32, next, comm, stream);
        (void)ncclRecv(recv, count, FLOAT32, previous, comm, stream);
        return ncclGroupEnd();
    }
    }
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

struct seconds {
    double done, issue;
};

// So many calls.
static struct seconds run(const struct options *options, const struct plan *plan,
                          const struct shape *shape, float *send, float *recv, int times) {
    const double start = now();
    size_t at = 0;
    for (int n = 0; n < times; n++) {
        CHECK(call(options->operation, shape, send + at, recv + at));
        if (options->sync_each) {
            CHECK(cudaStreamSynchronize(stream));
        }
        at = next_place(plan, shape, at);
    }
    const double issued = now();
    CHECK(cudaStreamSynchronize(stream));
    const struct seconds seconds = {now() - start, issued - start};
    return seconds;
}

static float *buffer(bool is_device, size_t elements) {
    if (!is_device) {
        return allocate(elements);
    }
    void *memory = NULL;
    CHECK(ncclMemAlloc(&memory, elements * sizeof(float)));
    memset(memory, 0, elements * sizeof(float));
    return (float *)memory;
}

static void measure(const struct options *options, bool is_device) {
    struct plan plan = plan_of(options, ranks);
    CHECK(cudaSetDevice(rank));
    CHECK(cudaStreamCreate(&stream));
    if (rank == 0) {
        CHECK(ncclGetUniqueId(&meeting->id));
    }
    meet();
    CHECK(ncclCommInitRank(&comm, ranks, meeting->id, rank));
    float *send = buffer(is_device, plan.largest), *recv = buffer(is_device, plan.largest);
    for (size_t i = 0; i < plan.largest; i++) {
        send[i] = input(rank, i);
    }

    for (int i = 0; i < plan.number; i++) {
        struct repeated *size = &plan.sizes[i];
        run(options, &plan, &size->shape, send, recv, 1);
        meet();
        double longest = 0;
        const double *sample =
            tell(run(options, &plan, &size->shape, send, recv, SAMPLE).done / SAMPLE);
        for (int other = 0; other < ranks; other++) {
            longest = sample[other] > longest ? sample[other] : longest;
        }
        size->times = affordable(options, size->times, longest);
        run(options, &plan, &size->shape, send, recv, warmup(options, size->times));
        meet();
    }
    for (int i = 0; i < plan.number; i++) {
        const struct shape *shape = &plan.sizes[i].shape;
        const int times = plan.sizes[i].times;
        clear(recv, shape->recv);
        meet(); // a rank that sends must not meet one that still clears
        run(options, &plan, shape, send, recv, 1);
        if (!(options->operation == BROADCAST && rank == 0) &&
            !is_right(options->operation, shape, ranks, rank, recv)) {
            exit(WRONG_DATA);
        }
        run(options, &plan, shape, send, recv, 1);
        meet();
        const struct seconds seconds = run(options, &plan, shape, send, recv, times);
        // What comes next takes no time from ranks that still measure.
        meet();
        double done = 0, issue = 0;
        const double *told = tell(seconds.done);
        for (int other = 0; other < ranks; other++) {
            done += told[other];
        }
        meet();
        told = tell(seconds.issue);
        for (int other = 0; other < ranks; other++) {
            issue += told[other];
        }
        const double per_call = 1e6 / times / ranks;
        if (rank == 0) {
            printf("%zu %.4f %.4f\n", shape->largest * sizeof(float), done * per_call,
                   issue * per_call);
            fflush(stdout);
        }
    }
    if (is_device) {
        CHECK(ncclMemFree(send));
        CHECK(ncclMemFree(recv));
    }
    CHECK(ncclCommDestroy(comm));
    CHECK(cudaStreamDestroy(stream));
}

// Waits for all ranks; when one fails, ends the others, which would wait for it. Answers its code.
static int wait_for(const pid_t *started, int number) {
    int code = 0, status = 0;
    for (pid_t ended = wait(&status); ended > 0; ended = wait(&status)) {
        if (status == 0 || code != 0) {
            continue;
        }
        code = WIFEXITED(status) ? WEXITSTATUS(status) : FAILED;
        for (int i = 0; i < number; i++) {
            if (started[i] != ended) {
                kill(started[i], SIGKILL);
            }
        }
    }
    return code;
}

static void share_meeting(void) {
    void *memory = mmap(NULL, sizeof *meeting, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                        -1, 0);
    pthread_barrierattr_t shared;
    if (memory == MAP_FAILED || pthread_barrierattr_init(&shared) != 0 ||
        pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED) != 0) {
        perror("memory for the ranks");
        exit(FAILED);
    }
    meeting = memory;
    if (pthread_barrier_init(&meeting->barrier, &shared, (unsigned)ranks) != 0) {
        fprintf(stderr, "no barrier for %d ranks\n", ranks);
        exit(FAILED);
    }
}

int main(int argc, char **argv) {
    const char *usage = "nccl LIBRARY device|host OPERATION [-n RANKS] [-b BYTES] [-e BYTES] "
                        "[--sync-each] [--iters N] [--warmup N]";
    const char *path = argc > 1 ? argv[1] : "", *memory = argc > 2 ? argv[2] : "";
    const bool is_device = strcmp(memory, "device") == 0;
    if (!is_device && strcmp(memory, "host") != 0) {
        fprintf(stderr, "usage: %s\n", usage);
        return BAD_USAGE;
    }
    const struct options options = parse(argc - 2, argv + 2, usage);
    ranks = options.ranks == 0 ? 2 : options.ranks;
    if (options.threads != 0) {
        fprintf(stderr, "ranks are processes: no --threads\n");
        return BAD_USAGE;
    }
    share_meeting();
    pid_t started[256];
    int number = 0;
    while (number < ranks) {
        const pid_t pid = fork();
        if (pid < 0) {
            perror("fork");
            for (int i = 0; i < number; i++) {
                kill(started[i], SIGKILL);
            }
            break;
        }
        if (pid > 0) {
            started[number++] = pid;
            continue;
        }
        rank = number;
        // Here and not before: a library that was called does not survive a fork.
        open_library(path);
        if (rank == 0) {
            int version = 0;
            CHECK(ncclGetVersion(&version));
            char name[64];
            snprintf(name, sizeof name, "the mock as libnccl %d.%d.%d", version / 10000,
                     version / 100 % 100, version % 100);
            print_settings(&options, name, ranks);
        }
        measure(&options, is_device);
        return 0;
    }
    const int code = wait_for(started, number);
    return number < ranks ? FAILED : code;
}
