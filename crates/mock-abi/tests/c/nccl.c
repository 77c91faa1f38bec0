/*
 * What a C program sees of NCCL, in lines that do not depend on the library behind it.
 *
 * One process, two ranks on devices 0 and 1, driven by one thread with groups and by two threads.
 * Every line has a name and what came out: `ok`, or the result code of a call. Times, addresses and
 * versions are never printed, so the output with NVIDIA's NCCL on two GPUs and with the mock can be
 * compared line by line.
 *
 *   cc -I<nccl.h> -I<cuda_runtime.h> nccl.c -lnccl -lcudart -lpthread
 *   cc -DONE_DEVICE ... -lnccl -lcudart -lpthread   both ranks on device 0, which NCCL 2.30.3 and
 *                             later allow where NCCL_MULTI_RANK_GPU_ENABLE=1
 *   cc -DPLAIN_HOST ... -lnccl -lpthread            without CUDA: host memory, for the mock only
 */
#include <limits.h>
#include <nccl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RANKS 2
#define COUNT 1000

/* --- devices --------------------------------------------------------------------------------- */

#ifdef ONE_DEVICE
static int device_of(int rank) { return rank * 0; }
#else
static int device_of(int rank) { return rank; }
#endif

#ifdef PLAIN_HOST

static void use(int rank) { (void)rank; }
static void *device_alloc(size_t bytes) { return calloc(1, bytes); }
static void device_free(void *memory) { free(memory); }
static void to_device(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
static void to_host(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
static cudaStream_t stream_create(void) { return NULL; }
static void stream_destroy(cudaStream_t stream) { (void)stream; }
/* What is enqueued here is small, and runs when the last rank has called. */
static void wait_for(cudaStream_t stream) { (void)stream; }
#else
static void cuda(cudaError_t error, const char *call) {
  if (error != cudaSuccess) {
    printf("%s: %s\n", call, cudaGetErrorString(error));
    exit(1);
  }
}
#define CUDA(call) cuda((call), #call)

static void use(int rank) { CUDA(cudaSetDevice(device_of(rank))); }
static void *device_alloc(size_t bytes) {
  void *memory = NULL;
  CUDA(cudaMalloc(&memory, bytes));
  return memory;
}
static void device_free(void *memory) { CUDA(cudaFree(memory)); }
static void to_device(void *to, const void *from, size_t bytes) {
  CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}
static void to_host(void *to, const void *from, size_t bytes) {
  CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}
static cudaStream_t stream_create(void) {
  cudaStream_t stream = NULL;
  CUDA(cudaStreamCreate(&stream));
  return stream;
}
static void stream_destroy(cudaStream_t stream) { CUDA(cudaStreamDestroy(stream)); }
static void wait_for(cudaStream_t stream) { CUDA(cudaStreamSynchronize(stream)); }
#endif

/* --- what is printed ------------------------------------------------------------------------- */

static void say(const char *name, int good) { printf("%s: %s\n", name, good ? "ok" : "WRONG"); }
static void code(const char *name, ncclResult_t result) { printf("%s -> %d\n", name, (int)result); }

/* Calls that must succeed. */
static void must(ncclResult_t result, const char *call) {
  if (result != ncclSuccess) {
    printf("%s -> %d (%s): %s\n", call, (int)result, ncclGetErrorString(result),
           ncclGetLastError(NULL));
    exit(1);
  }
}
#define MUST(call) must((call), #call)

/* --- the two ranks of most tests ------------------------------------------------------------- */

typedef struct {
  ncclComm_t comm[RANKS];
  cudaStream_t stream[RANKS];
  void *send[RANKS];
  void *recv[RANKS];
} World;

static const size_t BYTES = 4 * COUNT * 8;

/* One communicator of both ranks, made by one thread. */
static void make_both(ncclComm_t comm[RANKS]) {
  ncclUniqueId id;
  MUST(ncclGetUniqueId(&id));
  MUST(ncclGroupStart());
  for (int rank = 0; rank < RANKS; rank++) {
    use(rank);
    comm[rank] = NULL;
    MUST(ncclCommInitRank(&comm[rank], RANKS, id, rank));
  }
  MUST(ncclGroupEnd());
}

/* The same by CommInitAll, which refuses a device twice. */
static void make_all(ncclComm_t comm[RANKS], const int *devices) {
#ifdef ONE_DEVICE
  (void)devices;
  make_both(comm);
#else
  MUST(ncclCommInitAll(comm, RANKS, devices));
#endif
}

static void world_make(World *world) {
  make_both(world->comm);
  for (int rank = 0; rank < RANKS; rank++) {
    use(rank);
    world->stream[rank] = stream_create();
    world->send[rank] = device_alloc(BYTES);
    world->recv[rank] = device_alloc(BYTES);
  }
}

static void world_wait(World *world) {
  for (int rank = 0; rank < RANKS; rank++) {
    use(rank);
    wait_for(world->stream[rank]);
  }
}

static void world_end(World *world) {
  for (int rank = 0; rank < RANKS; rank++) {
    use(rank);
    MUST(ncclCommDestroy(world->comm[rank]));
    device_free(world->send[rank]);
    device_free(world->recv[rank]);
    stream_destroy(world->stream[rank]);
  }
}

/* Fills `send` of both ranks with int32: 1000 * rank + index. */
static void fill(World *world, size_t count) {
  int32_t *host = malloc(count * sizeof *host);
  for (int rank = 0; rank < RANKS; rank++) {
    use(rank);
    for (size_t i = 0; i < count; i++) host[i] = 10000 * rank + (int32_t)i;
    to_device(world->send[rank], host, count * sizeof *host);
    memset(host, 0xee, count * sizeof *host);
    to_device(world->recv[rank], host, count * sizeof *host);
  }
  free(host);
}

static int32_t given(int rank, size_t index) { return 10000 * rank + (int32_t)index; }

/* Whether `count` int32 at `memory` of `rank` are those of `want`. */
static int holds(int rank, const void *memory, size_t count, int32_t (*want)(int, size_t)) {
  int32_t *host = malloc(count * sizeof *host);
  int good = 1;
  use(rank);
  to_host(host, memory, count * sizeof *host);
  for (size_t i = 0; i < count; i++) {
    if (host[i] != want(rank, i)) {
      if (good) printf("rank %d element %zu is %d, want %d\n", rank, i, host[i], want(rank, i));
      good = 0;
    }
  }
  free(host);
  return good;
}

#define EACH(rank) for (int rank = 0; rank < RANKS; rank++)
#define GROUP(body)                                                                                \
  do {                                                                                             \
    MUST(ncclGroupStart());                                                                        \
    EACH(rank) {                                                                                   \
      body;                                                                                        \
    }                                                                                              \
    MUST(ncclGroupEnd());                                                                          \
    world_wait(world);                                                                             \
  } while (0)

/* --- collectives ----------------------------------------------------------------------------- */

static int32_t sum_of_both(int rank, size_t i) {
  (void)rank;
  return given(0, i) + given(1, i);
}
static int32_t of_rank_1(int rank, size_t i) {
  (void)rank;
  return given(1, i);
}
static int32_t gathered(int rank, size_t i) {
  (void)rank;
  return given((int)(i / COUNT), i % COUNT);
}
static int32_t scattered_sum(int rank, size_t i) {
  return given(0, rank * COUNT + i) + given(1, rank * COUNT + i);
}
static int32_t exchanged(int rank, size_t i) {
  return given((int)(i / COUNT), rank * COUNT + i % COUNT);
}
static int32_t part_of_rank_1(int rank, size_t i) { return given(1, rank * COUNT + i); }
static int32_t of_other(int rank, size_t i) { return given(1 - rank, i); }
static int32_t of_self(int rank, size_t i) { return given(rank, i); }

static int both(World *world, void **memory, size_t count, int32_t (*want)(int, size_t)) {
  (void)world;
  int good = 1;
  EACH(rank) good &= holds(rank, memory[rank], count, want);
  return good;
}

static void collectives(World *world) {
  fill(world, COUNT);
  GROUP(MUST(ncclAllReduce(world->send[rank], world->recv[rank], COUNT, ncclInt32, ncclSum,
                           world->comm[rank], world->stream[rank])));
  say("AllReduce", both(world, world->recv, COUNT, sum_of_both));

  GROUP(MUST(ncclAllReduce(world->send[rank], world->send[rank], COUNT, ncclInt32, ncclSum,
                           world->comm[rank], world->stream[rank])));
  say("AllReduce in place", both(world, world->send, COUNT, sum_of_both));

  fill(world, COUNT);
  GROUP(MUST(ncclBroadcast(rank == 1 ? world->send[rank] : NULL, world->recv[rank], COUNT,
                           ncclInt32, 1, world->comm[rank], world->stream[rank])));
  say("Broadcast", both(world, world->recv, COUNT, of_rank_1));

  GROUP(MUST(ncclBcast(world->send[rank], COUNT, ncclInt32, 1, world->comm[rank],
                       world->stream[rank])));
  say("Bcast", both(world, world->send, COUNT, of_rank_1));

  fill(world, COUNT);
  GROUP(MUST(ncclReduce(world->send[rank], rank == 1 ? world->recv[rank] : NULL, COUNT, ncclInt32,
                        ncclSum, 1, world->comm[rank], world->stream[rank])));
  say("Reduce", holds(1, world->recv[1], COUNT, sum_of_both));

  GROUP(MUST(ncclAllGather(world->send[rank], world->recv[rank], COUNT, ncclInt32,
                           world->comm[rank], world->stream[rank])));
  say("AllGather", both(world, world->recv, RANKS * COUNT, gathered));

  EACH(rank) {
    use(rank);
    int32_t host[COUNT];
    for (size_t i = 0; i < COUNT; i++) host[i] = given(rank, i);
    to_device((char *)world->recv[rank] + rank * sizeof host, host, sizeof host);
  }
  GROUP(MUST(ncclAllGather((char *)world->recv[rank] + rank * COUNT * 4, world->recv[rank], COUNT,
                           ncclInt32, world->comm[rank], world->stream[rank])));
  say("AllGather in place", both(world, world->recv, RANKS * COUNT, gathered));

  fill(world, RANKS * COUNT);
  GROUP(MUST(ncclReduceScatter(world->send[rank], world->recv[rank], COUNT, ncclInt32, ncclSum,
                               world->comm[rank], world->stream[rank])));
  say("ReduceScatter", both(world, world->recv, COUNT, scattered_sum));

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 3)
  GROUP(MUST(ncclAlltoAll(world->send[rank], world->recv[rank], COUNT, ncclInt32, world->comm[rank],
                          world->stream[rank])));
  say("AlltoAll", both(world, world->recv, RANKS * COUNT, exchanged));

  GROUP(MUST(ncclGather(world->send[rank], rank == 1 ? world->recv[rank] : NULL, COUNT, ncclInt32,
                        1, world->comm[rank], world->stream[rank])));
  say("Gather", holds(1, world->recv[1], RANKS * COUNT, gathered));

  GROUP(MUST(ncclScatter(rank == 1 ? world->send[rank] : NULL, world->recv[rank], COUNT, ncclInt32,
                         1, world->comm[rank], world->stream[rank])));
  say("Scatter", both(world, world->recv, COUNT, part_of_rank_1));
#endif

  /* Both streams of one communicator, many operations in one group. */
  fill(world, COUNT);
  MUST(ncclGroupStart());
  EACH(rank) {
    MUST(ncclAllReduce(world->send[rank], world->recv[rank], COUNT, ncclInt32, ncclSum,
                       world->comm[rank], world->stream[rank]));
    MUST(ncclAllGather(world->send[rank], (char *)world->recv[rank] + COUNT * 4, COUNT, ncclInt32,
                       world->comm[rank], world->stream[rank]));
  }
  MUST(ncclGroupEnd());
  world_wait(world);
  int good = both(world, world->recv, COUNT, sum_of_both);
  EACH(rank) good &= holds(rank, (char *)world->recv[rank] + COUNT * 4, RANKS * COUNT, gathered);
  say("two collectives in a group", good);
}

/* One element of each type, combined by each operator; the pattern of the result is compared. */
static void types_and_operators(World *world) {
  struct {
    const char *name;
    ncclDataType_t type;
    size_t bytes;
    /* Values of ranks 0 and 1; results of sum, prod, max, min. */
    uint64_t value[RANKS], want[4];
  } cases[] = {
      {"int8", ncclInt8, 1, {5, 0xfd}, {2, 0xf1, 5, 0xfd}},
      {"uint8", ncclUint8, 1, {200, 100}, {44, 32, 200, 100}},
      {"int32", ncclInt32, 4, {7, 0xfffffffe}, {5, 0xfffffff2, 7, 0xfffffffe}},
      {"uint32", ncclUint32, 4, {7, 0xfffffffe}, {5, 0xfffffff2, 0xfffffffe, 7}},
      {"int64", ncclInt64, 8, {7, UINT64_MAX}, {6, (uint64_t)-7, 7, UINT64_MAX}},
      {"uint64", ncclUint64, 8, {7, UINT64_MAX}, {6, (uint64_t)-7, UINT64_MAX, 7}},
      {"float16", ncclFloat16, 2, {0x4000, 0x4200}, {0x4500, 0x4600, 0x4200, 0x4000}},
      {"float32", ncclFloat32, 4, {0x40000000, 0x40400000},
       {0x40a00000, 0x40c00000, 0x40400000, 0x40000000}},
      {"float64", ncclFloat64, 8, {0x4000000000000000, 0x4008000000000000},
       {0x4014000000000000, 0x4018000000000000, 0x4008000000000000, 0x4000000000000000}},
      {"bfloat16", ncclBfloat16, 2, {0x4000, 0x4040}, {0x40a0, 0x40c0, 0x4040, 0x4000}},
  };
  static const ncclRedOp_t operators[4] = {ncclSum, ncclProd, ncclMax, ncclMin};
  for (size_t at = 0; at < sizeof cases / sizeof *cases; at++) {
    int good = 1;
    for (int op = 0; op < 4; op++) {
      EACH(rank) {
        use(rank);
        to_device(world->send[rank], &cases[at].value[rank], cases[at].bytes);
      }
      GROUP(MUST(ncclAllReduce(world->send[rank], world->recv[rank], 1, cases[at].type,
                               operators[op], world->comm[rank], world->stream[rank])));
      EACH(rank) {
        uint64_t result = 0;
        use(rank);
        to_host(&result, world->recv[rank], cases[at].bytes);
        if (result != cases[at].want[op]) {
          printf("%s operator %d rank %d: %llx\n", cases[at].name, op, rank,
                 (unsigned long long)result);
          good = 0;
        }
      }
    }
    say(cases[at].name, good);
  }

  float average[RANKS] = {1.0f, 4.0f};
  EACH(rank) {
    use(rank);
    to_device(world->send[rank], &average[rank], sizeof(float));
  }
  GROUP(MUST(ncclAllReduce(world->send[rank], world->recv[rank], 1, ncclFloat32, ncclAvg,
                           world->comm[rank], world->stream[rank])));
  float result = 0;
  use(0);
  to_host(&result, world->recv[0], sizeof result);
  say("average of floats", result == 2.5f);

  int32_t numbers[RANKS] = {-4, -3};
  EACH(rank) {
    use(rank);
    to_device(world->send[rank], &numbers[rank], sizeof(int32_t));
  }
  GROUP(MUST(ncclAllReduce(world->send[rank], world->recv[rank], 1, ncclInt32, ncclAvg,
                           world->comm[rank], world->stream[rank])));
  int32_t number = 0;
  use(0);
  to_host(&number, world->recv[0], sizeof number);
  say("average of integers goes toward zero", number == -3);
}

static void point_to_point(World *world) {
  fill(world, COUNT);
  MUST(ncclGroupStart());
  EACH(rank) {
    int next = (rank + 1) % RANKS, last = (rank + RANKS - 1) % RANKS;
    MUST(ncclSend(world->send[rank], COUNT, ncclInt32, next, world->comm[rank],
                  world->stream[rank]));
    MUST(ncclRecv(world->recv[rank], COUNT, ncclInt32, last, world->comm[rank],
                  world->stream[rank]));
  }
  MUST(ncclGroupEnd());
  world_wait(world);
  say("ring", both(world, world->recv, COUNT, of_other));

  fill(world, COUNT);
  MUST(ncclGroupStart());
  EACH(rank) {
    MUST(ncclSend(world->send[rank], COUNT, ncclInt32, rank, world->comm[rank],
                  world->stream[rank]));
    MUST(ncclRecv(world->recv[rank], COUNT, ncclInt32, rank, world->comm[rank],
                  world->stream[rank]));
  }
  MUST(ncclGroupEnd());
  world_wait(world);
  say("to oneself", both(world, world->recv, COUNT, of_self));

  MUST(ncclGroupStart());
  EACH(rank) {
    MUST(ncclSend(NULL, 0, ncclInt32, 1 - rank, world->comm[rank], world->stream[rank]));
    MUST(ncclRecv(NULL, 0, ncclInt32, 1 - rank, world->comm[rank], world->stream[rank]));
  }
  MUST(ncclGroupEnd());
  world_wait(world);
  say("nothing to each other", 1);

  use(0);
  MUST(ncclAllReduce(NULL, NULL, 0, ncclInt32, ncclSum, world->comm[0], world->stream[0]));
  wait_for(world->stream[0]);
  say("an empty collective waits for nobody", 1);
}

/* --- operators ------------------------------------------------------------------------------- */

static void pre_mul_sum(World *world) {
  ncclRedOp_t op[RANKS];
  float scalar[RANKS] = {2.0f, 10.0f}, value[RANKS] = {3.0f, 5.0f}, result;
  EACH(rank) {
    use(rank);
    MUST(ncclRedOpCreatePreMulSum(&op[rank], &scalar[rank], ncclFloat32, ncclScalarHostImmediate,
                                  world->comm[rank]));
    to_device(world->send[rank], &value[rank], sizeof(float));
  }
  scalar[0] = 1000.0f; /* it was copied */
  MUST(ncclGroupStart());
  EACH(rank) {
    MUST(ncclAllReduce(world->send[rank], world->recv[rank], 1, ncclFloat32, op[rank],
                       world->comm[rank], world->stream[rank]));
    MUST(ncclRedOpDestroy(op[rank], world->comm[rank]));
  }
  MUST(ncclGroupEnd());
  world_wait(world);
  use(0);
  to_host(&result, world->recv[0], sizeof result);
  say("scalar of the host", result == 3.0f * 2.0f + 5.0f * 10.0f);
  code("a destroyed operator destroyed again", ncclRedOpDestroy(op[0], world->comm[0]));
  code("AllReduce with it", ncclAllReduce(world->send[0], world->recv[0], 1, ncclFloat32, op[0],
                                          world->comm[0], world->stream[0]));

  void *place[RANKS];
  EACH(rank) {
    use(rank);
    float late = 0.5f;
    place[rank] = device_alloc(sizeof(float));
    to_device(place[rank], &late, sizeof late);
    MUST(ncclRedOpCreatePreMulSum(&op[rank], place[rank], ncclFloat32, ncclScalarDevice,
                                  world->comm[rank]));
  }
  GROUP(MUST(ncclAllReduce(world->send[rank], world->recv[rank], 1, ncclFloat32, op[rank],
                           world->comm[rank], world->stream[rank])));
  use(0);
  to_host(&result, world->recv[0], sizeof result);
  say("scalar of the device", result == 4.0f);
  code("it with another type", ncclAllReduce(world->send[0], world->recv[0], 1, ncclInt32, op[0],
                                             world->comm[0], world->stream[0]));
  EACH(rank) {
    use(rank);
    MUST(ncclRedOpDestroy(op[rank], world->comm[rank]));
    device_free(place[rank]);
  }
  code("a built-in operator destroyed", ncclRedOpDestroy(ncclSum, world->comm[0]));
}

/* --- communicators from communicators -------------------------------------------------------- */

static void queries(World *world) {
  EACH(rank) {
    int count = -1, device = -1, own = -1;
    ncclResult_t state = ncclInternalError;
    MUST(ncclCommCount(world->comm[rank], &count));
    MUST(ncclCommCuDevice(world->comm[rank], &device));
    MUST(ncclCommUserRank(world->comm[rank], &own));
    MUST(ncclCommGetAsyncError(world->comm[rank], &state));
    printf("rank %d: count %d device %s rank %d state %d\n", rank, count,
           device == device_of(rank) ? "ok" : "WRONG", own, (int)state);
  }
}

static void split(World *world) {
  ncclComm_t child[RANKS] = {NULL, NULL};
  MUST(ncclGroupStart());
  /* The key turns the order round. */
  EACH(rank) MUST(ncclCommSplit(world->comm[rank], 7, -rank, &child[rank], NULL));
  MUST(ncclGroupEnd());
  EACH(rank) {
    int count = -1, own = -1;
    MUST(ncclCommCount(child[rank], &count));
    MUST(ncclCommUserRank(child[rank], &own));
    printf("split: rank %d is rank %d of %d\n", rank, own, count);
  }
  fill(world, COUNT);
  /* Rank 0 of the child is rank 1 of the parent. */
  GROUP(MUST(ncclBroadcast(world->send[rank], world->recv[rank], COUNT, ncclInt32, 0, child[rank],
                           world->stream[rank])));
  say("broadcast in a split", both(world, world->recv, COUNT, of_rank_1));
  EACH(rank) {
    use(rank);
    MUST(ncclCommDestroy(child[rank]));
  }

  child[0] = child[1] = (ncclComm_t)1;
  MUST(ncclGroupStart());
  EACH(rank)
  MUST(ncclCommSplit(world->comm[rank], rank == 0 ? 3 : NCCL_SPLIT_NOCOLOR, 0, &child[rank], NULL));
  MUST(ncclGroupEnd());
  int count = -1;
  MUST(ncclCommCount(child[0], &count));
  printf("split: %d rank with a color, without: %s\n", count, child[1] == NULL ? "null" : "some");
  use(0);
  MUST(ncclCommDestroy(child[0]));

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 3)
  int exclude[1] = {1}, own = -1;
  ncclComm_t smaller = NULL;
  use(0);
  MUST(ncclCommShrink(world->comm[0], exclude, 1, &smaller, NULL, NCCL_SHRINK_DEFAULT));
  MUST(ncclCommCount(smaller, &count));
  MUST(ncclCommUserRank(smaller, &own));
  printf("shrink: rank %d of %d\n", own, count);
  MUST(ncclCommDestroy(smaller));
  int self[1] = {0};
  code("shrink without oneself",
       ncclCommShrink(world->comm[0], self, 1, &smaller, NULL, NCCL_SHRINK_DEFAULT));
  code("shrink without nobody",
       ncclCommShrink(world->comm[0], exclude, 0, &smaller, NULL, NCCL_SHRINK_DEFAULT));
#endif
}

/* --- life ------------------------------------------------------------------------------------ */

static ncclResult_t poll_state(ncclComm_t comm) {
  ncclResult_t state = ncclInProgress;
  struct timespec pause = {0, 100000};
  while (state == ncclInProgress) {
    ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
    if (asked != ncclSuccess) return asked;
    nanosleep(&pause, NULL);
  }
  return state;
}

/* Whether a non-blocking call may answer this. */
static int begun(ncclResult_t result) { return result == ncclSuccess || result == ncclInProgress; }

static void nonblocking(World *world) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclComm_t comm[RANKS] = {NULL, NULL};
  ncclUniqueId id;
  config.blocking = 0;
  MUST(ncclGetUniqueId(&id));
  int good = 1;
  MUST(ncclGroupStart());
  EACH(rank) {
    use(rank);
    good &= begun(ncclCommInitRankConfig(&comm[rank], RANKS, id, rank, &config));
  }
  good &= begun(ncclGroupEnd());
  say("non-blocking init begins", good && comm[0] != NULL && comm[1] != NULL);
  EACH(rank) code("its state in the end", poll_state(comm[rank]));

  fill(world, COUNT);
  good = 1;
  MUST(ncclGroupStart());
  EACH(rank)
  good &= begun(ncclAllReduce(world->send[rank], world->recv[rank], COUNT, ncclInt32, ncclSum,
                              comm[rank], world->stream[rank]));
  good &= begun(ncclGroupEnd());
  EACH(rank) good &= poll_state(comm[rank]) == ncclSuccess;
  world_wait(world);
  say("non-blocking AllReduce", good && both(world, world->recv, COUNT, sum_of_both));

  good = 1;
  MUST(ncclGroupStart());
  EACH(rank) good &= begun(ncclCommFinalize(comm[rank]));
  good &= begun(ncclGroupEnd());
  EACH(rank) good &= poll_state(comm[rank]) == ncclSuccess;
  say("non-blocking finalize", good);
  EACH(rank) {
    use(rank);
    code("destroy", ncclCommDestroy(comm[rank]));
  }

  /* One rank alone, that nobody joins. */
  ncclComm_t alone = NULL;
  MUST(ncclGetUniqueId(&id));
  use(0);
  say("a join that lacks a rank begins",
      begun(ncclCommInitRankConfig(&alone, RANKS, id, 0, &config)));
  ncclResult_t state = ncclSuccess;
  MUST(ncclCommGetAsyncError(alone, &state));
  code("its state", state);
  int count;
  code("a query of it", ncclCommCount(alone, &count));
  code("a collective on it", ncclAllReduce(world->send[0], world->recv[0], 1, ncclInt32, ncclSum,
                                           alone, world->stream[0]));
  code("its abort", ncclCommAbort(alone));
}

static void life(void) {
  int devices[RANKS] = {0, 1}, twice[RANKS] = {0, 0};
  ncclComm_t comm[RANKS];
  make_all(comm, devices);
  MUST(ncclGroupStart());
  EACH(rank) MUST(ncclCommFinalize(comm[rank]));
  MUST(ncclGroupEnd());
  code("finalize twice", ncclCommFinalize(comm[0]));
  EACH(rank) {
    use(rank);
    code("destroy after finalize", ncclCommDestroy(comm[rank]));
  }
  code("InitAll of -1", ncclCommInitAll(comm, -1, NULL));
  code("InitAll of a device twice", ncclCommInitAll(comm, RANKS, twice));

  make_all(comm, NULL);
  EACH(rank) {
    use(rank);
    code("abort", ncclCommAbort(comm[rank]));
  }

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 7)
  make_all(comm, NULL);
  code("revoke with flags", ncclCommRevoke(comm[0], 1));
  EACH(rank) code("revoke", ncclCommRevoke(comm[rank], NCCL_REVOKE_DEFAULT));
  code("revoke again", ncclCommRevoke(comm[0], NCCL_REVOKE_DEFAULT));
  int32_t *one = NULL;
  use(0);
  one = device_alloc(sizeof *one);
  code("AllReduce after it",
       ncclAllReduce(one, one, 1, ncclInt32, ncclSum, comm[0], NULL));
  code("finalize after it", ncclCommFinalize(comm[0]));
  device_free(one);
  EACH(rank) {
    use(rank);
    code("abort after it", ncclCommAbort(comm[rank]));
  }
#endif
}

static void memory(World *world) {
  void *memory = NULL, *handle = NULL;
  use(0);
  MUST(ncclMemAlloc(&memory, 1 << 20));
  say("MemAlloc", memory != NULL);
  code("register", ncclCommRegister(world->comm[0], memory, 1 << 20, &handle));
  code("deregister", ncclCommDeregister(world->comm[0], handle));
  code("MemFree", ncclMemFree(memory));
}

/* --- two threads ----------------------------------------------------------------------------- */

typedef struct {
  int rank;
  ncclUniqueId id;
  int good;
} Thread;

static void *thread_main(void *argument) {
  Thread *self = argument;
  ncclComm_t comm = NULL;
  use(self->rank);
  MUST(ncclCommInitRank(&comm, RANKS, self->id, self->rank));
  cudaStream_t stream = stream_create();
  int64_t value = self->rank + 1, *buffer = device_alloc(sizeof value);
  self->good = 1;
  for (int round = 0; round < 100; round++) {
    to_device(buffer, &value, sizeof value);
    MUST(ncclAllReduce(buffer, buffer, 1, ncclInt64, ncclSum, comm, stream));
    wait_for(stream);
#ifdef PLAIN_HOST
    /* The program's own wait: it only looks at its memory. */
    while (*(volatile int64_t *)buffer != 3) nanosleep(&(struct timespec){0, 10000}, NULL);
#endif
    int64_t result = 0;
    to_host(&result, buffer, sizeof result);
    self->good &= result == 3;
  }
  MUST(ncclCommDestroy(comm));
  device_free(buffer);
  stream_destroy(stream);
  return NULL;
}

static void threads(void) {
  Thread thread[RANKS];
  pthread_t handle[RANKS];
  ncclUniqueId id;
  MUST(ncclGetUniqueId(&id));
  EACH(rank) {
    thread[rank] = (Thread){rank, id, 0};
    if (pthread_create(&handle[rank], NULL, thread_main, &thread[rank]) != 0) exit(1);
  }
  EACH(rank) pthread_join(handle[rank], NULL);
  say("two threads, 100 times", thread[0].good && thread[1].good);
}

/* --- misuse ---------------------------------------------------------------------------------- */

static ncclResult_t all_reduce(World *world, ncclComm_t comm, int type, int op) {
  return ncclAllReduce(world->send[0], world->recv[0], 1, (ncclDataType_t)type, (ncclRedOp_t)op,
                       comm, world->stream[0]);
}

static void misuse(World *world) {
  ncclComm_t comm = world->comm[0], made = NULL;
  ncclUniqueId id;
  int number;
  void *send = world->send[0], *recv = world->recv[0];
  cudaStream_t stream = world->stream[0];
  use(0);
  code("GetVersion(NULL)", ncclGetVersion(NULL));
  code("GetUniqueId(NULL)", ncclGetUniqueId(NULL));
  code("CommCount(NULL)", ncclCommCount(NULL, &number));
  code("CommCount into NULL", ncclCommCount(comm, NULL));
  code("CommCuDevice(NULL)", ncclCommCuDevice(NULL, &number));
  code("CommUserRank(NULL)", ncclCommUserRank(NULL, &number));
  code("CommGetAsyncError(NULL)", ncclCommGetAsyncError(NULL, (ncclResult_t *)&number));
  code("CommDestroy(NULL)", ncclCommDestroy(NULL));
  code("CommAbort(NULL)", ncclCommAbort(NULL));
  code("CommFinalize(NULL)", ncclCommFinalize(NULL));
  code("AllReduce without comm", all_reduce(world, NULL, ncclInt32, ncclSum));
  code("AllReduce of type 99", all_reduce(world, comm, 99, ncclSum));
  code("AllReduce of type -1", all_reduce(world, comm, -1, ncclSum));
  code("AllReduce by operator 99", all_reduce(world, comm, ncclInt32, 99));
  code("AllReduce by operator -1", all_reduce(world, comm, ncclInt32, -1));
  code("Broadcast from 2", ncclBroadcast(send, recv, 1, ncclInt32, 2, comm, stream));
  code("Broadcast from -1", ncclBroadcast(send, recv, 1, ncclInt32, -1, comm, stream));
  code("Reduce to 2", ncclReduce(send, recv, 1, ncclInt32, ncclSum, 2, comm, stream));
  code("Send to 2", ncclSend(send, 1, ncclInt32, 2, comm, stream));
  code("Recv from -1", ncclRecv(recv, 1, ncclInt32, -1, comm, stream));

  code("GroupEnd without a start", ncclGroupEnd());
  code("GroupStart", ncclGroupStart());
  code("GroupStart", ncclGroupStart());
  code("AllReduce without comm", all_reduce(world, NULL, ncclInt32, ncclSum));
  code("inner GroupEnd", ncclGroupEnd());
  code("outer GroupEnd", ncclGroupEnd());
  code("one more", ncclGroupEnd());
  code("GroupStart", ncclGroupStart());
  code("CommCount(NULL)", ncclCommCount(NULL, &number));
  code("GroupEnd after a failed query", ncclGroupEnd());
  code("GroupStart", ncclGroupStart());
  code("AllReduce of type 99", all_reduce(world, comm, 99, ncclSum));
  code("Broadcast from 2", ncclBroadcast(send, recv, 1, ncclInt32, 2, comm, stream));
  code("GroupEnd after both", ncclGroupEnd());
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 22, 3)
  ncclSimInfo_t info = NCCL_SIM_INFO_INITIALIZER;
  code("GroupStart", ncclGroupStart());
  code("GroupSimulateEnd", ncclGroupSimulateEnd(&info));
  say("an empty group has no time", info.estimatedTime == -1.0f);
  code("GroupSimulateEnd without a start", ncclGroupSimulateEnd(&info));
#endif

  MUST(ncclGetUniqueId(&id));
  code("InitRank into NULL", ncclCommInitRank(NULL, 1, id, 0));
  code("InitRank of 0 ranks", ncclCommInitRank(&made, 0, id, 0));
  code("InitRank as rank 1 of 1", ncclCommInitRank(&made, 1, id, 1));
  code("InitRank as rank -1", ncclCommInitRank(&made, 1, id, -1));
  say("nothing was made", made == NULL);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 7;
  code("blocking is 7", ncclCommInitRankConfig(&made, 1, id, 0, &config));
  config = (ncclConfig_t)NCCL_CONFIG_INITIALIZER;
  config.magic = 1;
  code("no magic", ncclCommInitRankConfig(&made, 1, id, 0, &config));
  code("Split into NULL", ncclCommSplit(comm, 0, 0, NULL, NULL));

  for (int result = 0; result < 8; result++)
    printf("%d is '%s'\n", result, ncclGetErrorString((ncclResult_t)result));
  printf("99 is '%s'\n", ncclGetErrorString((ncclResult_t)99));

  /* After all that both work as before. */
  fill(world, COUNT);
  GROUP(MUST(ncclAllReduce(world->send[rank], world->recv[rank], COUNT, ncclInt32, ncclSum,
                           world->comm[rank], world->stream[rank])));
  say("AllReduce afterwards", both(world, world->recv, COUNT, sum_of_both));
}

int main(void) {
  World world;
  setvbuf(stdout, NULL, _IOLBF, 0);
  world_make(&world);
  queries(&world);
  collectives(&world);
  types_and_operators(&world);
  point_to_point(&world);
  pre_mul_sum(&world);
  split(&world);
  memory(&world);
  nonblocking(&world);
  misuse(&world);
  world_end(&world);
  life();
  threads();
  printf("done\n");
  return 0;
}
