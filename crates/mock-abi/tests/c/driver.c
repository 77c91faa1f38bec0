/* What the CUDA driver answers where documentation is silent: captures in all modes against calls
 * that they forbid, wrong use of memory, streams, events and contexts, and the texts of its codes.
 *
 * It opens libcuda.so.1 itself and needs no header, prints nothing that depends on the device, and
 * driver.expected is what it printed with NVIDIA's driver 580.159.04 on an H200. "901" and its like
 * are CUresult. Compile with -ldl -lpthread.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef uintptr_t handle;

#define FUNCTIONS(X)                                                                               \
    X(cuInit, (unsigned))                                                                          \
    X(cuDeviceGet, (int *, int))                                                                   \
    X(cuDeviceGetCount, (int *))                                                                   \
    X(cuDevicePrimaryCtxRetain, (handle *, int))                                                   \
    X(cuCtxEnablePeerAccess, (handle, unsigned))                                                   \
    X(cuCtxGetCurrent, (handle *))                                                                 \
    X(cuCtxPopCurrent_v2, (handle *))                                                              \
    X(cuCtxSetCurrent, (handle))                                                                   \
    X(cuCtxSynchronize, (void))                                                                    \
    X(cuEventCreate, (handle *, unsigned))                                                         \
    X(cuEventDestroy_v2, (handle))                                                                 \
    X(cuEventElapsedTime, (float *, handle, handle))                                               \
    X(cuEventQuery, (handle))                                                                      \
    X(cuEventRecord, (handle, handle))                                                             \
    X(cuEventSynchronize, (handle))                                                                \
    X(cuGetErrorName, (int, const char **))                                                        \
    X(cuGetErrorString, (int, const char **))                                                      \
    X(cuGetProcAddress_v2, (const char *, void **, int, uint64_t, int *))                          \
    X(cuGraphDestroy, (handle))                                                                    \
    X(cuGraphExecDestroy, (handle))                                                                \
    X(cuGraphGetNodes, (handle, handle *, size_t *))                                               \
    X(cuGraphInstantiateWithFlags, (handle *, handle, uint64_t))                                   \
    X(cuGraphLaunch, (handle, handle))                                                             \
    X(cuGraphUpload, (handle, handle))                                                             \
    X(cuLaunchHostFunc, (handle, void (*)(void *), void *))                                        \
    X(cuMemAllocAsync, (handle *, size_t, handle))                                                 \
    X(cuMemAllocManaged, (handle *, size_t, unsigned))                                             \
    X(cuMemAlloc_v2, (handle *, size_t))                                                           \
    X(cuMemFreeAsync, (handle, handle))                                                            \
    X(cuMemFreeHost, (handle))                                                                     \
    X(cuMemFree_v2, (handle))                                                                      \
    X(cuMemGetAddressRange_v2, (handle *, size_t *, handle))                                       \
    X(cuMemGetInfo_v2, (size_t *, size_t *))                                                       \
    X(cuMemHostAlloc, (handle *, size_t, unsigned))                                                \
    X(cuMemHostRegister_v2, (void *, size_t, unsigned))                                            \
    X(cuMemHostUnregister, (void *))                                                               \
    X(cuMemcpyDtoHAsync_v2, (void *, handle, size_t, handle))                                      \
    X(cuMemcpyDtoH_v2, (void *, handle, size_t))                                                   \
    X(cuMemcpyHtoDAsync_v2, (handle, const void *, size_t, handle))                                \
    X(cuMemcpyHtoD_v2, (handle, const void *, size_t))                                             \
    X(cuMemsetD32_v2, (handle, unsigned, size_t))                                                  \
    X(cuMemsetD8Async, (handle, unsigned char, size_t, handle))                                    \
    X(cuMemsetD8_v2, (handle, unsigned char, size_t))                                              \
    X(cuPointerGetAttribute, (void *, int, handle))                                                \
    X(cuPointerGetAttributes, (unsigned, int *, void **, handle))                                  \
    X(cuStreamBeginCapture_v2, (handle, int))                                                      \
    X(cuStreamCreate, (handle *, unsigned))                                                        \
    X(cuStreamDestroy_v2, (handle))                                                                \
    X(cuStreamEndCapture, (handle, handle *))                                                      \
    X(cuStreamGetFlags, (handle, unsigned *))                                                      \
    X(cuStreamIsCapturing, (handle, int *))                                                        \
    X(cuStreamQuery, (handle))                                                                     \
    X(cuStreamSynchronize, (handle))                                                               \
    X(cuStreamWaitEvent, (handle, handle, unsigned))                                               \
    X(cuThreadExchangeStreamCaptureMode, (int *))

#define DECLARE(name, arguments) static int (*name) arguments;
FUNCTIONS(DECLARE)

static void load(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver) {
        puts(dlerror());
        exit(1);
    }
#define FIND(name, arguments)                                                                      \
    if (!(*(void **)&name = dlsym(driver, #name))) {                                               \
        puts("no " #name);                                                                         \
        exit(1);                                                                                   \
    }
    FUNCTIONS(FIND)
}

/* Prints what a call answers. */
#define SHOW(call) show(#call, call)

static void show(const char *what, int code) {
    printf("%-60s %d\n", what, code);
}

/* The status of a stream: 0 none, 1 active, 2 invalidated; 1000 and a code where there is none. */
static int status(handle stream) {
    int found = -1;
    int code = cuStreamIsCapturing(stream, &found);
    return code ? 1000 + code : found;
}

static int begin(handle stream, int mode) {
    return cuStreamBeginCapture_v2(stream, mode);
}

static int end(handle stream) {
    handle graph = 0;
    int code = cuStreamEndCapture(stream, &graph);
    if (!code && graph) {
        cuGraphDestroy(graph);
    }
    return code;
}

static handle context;
/* Two streams that are non-blocking, and one that is blocking. */
static handle stream, other, blocking;
/* Recorded outside captures: an event, and two timed ones. And one to record. */
static handle event, started, ended, fresh;
/* Device memory, pinned memory, and what calls allocate. */
static handle memory, pinned, made;
static char pageable[64];
static float milliseconds;

/* Has another thread make a call. */
static int (*elsewhere_call)(void);
static int elsewhere_code;

static void *elsewhere_main(void *nothing) {
    cuCtxSetCurrent(context);
    elsewhere_code = elsewhere_call();
    return nothing;
}

static int elsewhere(int (*call)(void)) {
    pthread_t thread;
    elsewhere_call = call;
    pthread_create(&thread, NULL, elsewhere_main, NULL);
    pthread_join(thread, NULL);
    return elsewhere_code;
}

static int end_it(void) {
    return end(stream);
}
static int allocate(void) {
    return cuMemAlloc_v2(&made, 64);
}
static int query(void) {
    return cuEventQuery(event);
}
static int synchronize(void) {
    return cuStreamSynchronize(other);
}

static void initialisation_and_memory(void) {
    int count = -1, device = -1, kind = -1, owner = -1;
    int asked[] = {2, 9};
    void *answers[] = {&kind, &owner};
    size_t size;
    SHOW(cuDeviceGetCount(&count));
    SHOW(cuInit(1));
    SHOW(cuInit(0));
    SHOW(cuDeviceGet(&device, 99));
    SHOW(cuMemAlloc_v2(&memory, 8));
    SHOW(cuCtxSynchronize());
    cuDevicePrimaryCtxRetain(&context, 0);
    cuCtxSetCurrent(context);
    SHOW(cuMemAlloc_v2(&memory, 0));
    SHOW(cuMemFree_v2(0));
    SHOW(cuMemAlloc_v2(&memory, (size_t)1 << 50));
    SHOW(cuMemAlloc_v2(&memory, 1000));
    SHOW(cuMemFree_v2(memory + 8));
    cuStreamCreate(&stream, 1);
    cuStreamCreate(&other, 1);
    cuStreamCreate(&blocking, 0);
    made = 1;
    SHOW(cuMemAllocAsync(&made, 0, stream));
    SHOW(made == 0);
    SHOW(cuMemAlloc_v2(&made, 64));
    SHOW(cuMemFreeAsync(made, stream));
    SHOW(cuMemFreeAsync(0, stream));
    SHOW(cuMemAllocAsync(&made, 64, stream));
    SHOW(cuMemFree_v2(made));
    SHOW(cuMemHostAlloc(&made, 0, 0));
    SHOW(cuMemFreeHost(0));
    SHOW(cuMemAllocManaged(&made, 0, 1));
    SHOW(cuMemHostAlloc(&pinned, 64, 0));
    SHOW(cuPointerGetAttribute(&kind, 2, (handle)pageable));
    SHOW(cuMemGetAddressRange_v2(&made, &size, (handle)pageable));
    SHOW(cuPointerGetAttributes(2, asked, answers, (handle)pageable));
    printf("type %d, device %d\n", kind, owner);
    SHOW(cuMemHostRegister_v2(pageable, 64, 0));
    SHOW(cuMemHostRegister_v2(pageable, 64, 0));
    SHOW(cuMemHostUnregister(pageable));
    SHOW(cuMemHostUnregister(pageable));
    SHOW(cuMemsetD8_v2(memory, 0, (size_t)3 << 20));
    SHOW(cuMemsetD32_v2(memory + 1, 0, 1));
    SHOW(cuMemcpyDtoH_v2(pageable, memory, 0));
}

static void events_and_streams(void) {
    unsigned flags = 9;
    cuEventCreate(&event, 2);
    cuEventCreate(&fresh, 2);
    cuEventCreate(&started, 0);
    cuEventCreate(&ended, 0);
    SHOW(cuEventQuery(event));
    SHOW(cuEventSynchronize(event));
    SHOW(cuStreamWaitEvent(stream, event, 0));
    SHOW(cuEventElapsedTime(&milliseconds, started, ended));
    cuEventRecord(started, stream);
    SHOW(cuEventElapsedTime(&milliseconds, started, ended));
    cuEventRecord(ended, stream);
    cuEventRecord(event, stream);
    cuStreamSynchronize(stream);
    SHOW(cuEventElapsedTime(&milliseconds, started, ended));
    SHOW(cuEventElapsedTime(&milliseconds, started, event));
    SHOW(cuEventCreate(&made, 4));
    SHOW(cuEventCreate(&made, 64));
    SHOW(cuStreamCreate(&made, 4));
    SHOW(cuStreamDestroy_v2(0));
    SHOW(cuStreamDestroy_v2(1));
    SHOW(cuStreamDestroy_v2(2));
    SHOW(cuStreamGetFlags(0, &flags));
    printf("flags %u\n", flags);
    SHOW(cuStreamGetFlags(2, &flags));
    printf("flags %u\n", flags);
    SHOW(cuLaunchHostFunc(stream, NULL, NULL));
    SHOW(end(stream));
    SHOW(begin(0, 2));
    SHOW(begin(1, 2));
    SHOW(begin(stream, 7));
    SHOW(begin(2, 2));
    SHOW(end(2));
    SHOW(begin(stream, 2));
    SHOW(begin(stream, 2));
    SHOW(status(stream));
    SHOW(end(stream));
}

/* Lets work in the same memory follow: nothing orders the null stream, where even a memset that is
 * no "Async" does not wait, and streams that are non-blocking. */
static void settle(void) {
    cuCtxSynchronize();
}

/* Makes a call while a stream captures, and prints its answer, the status, and how the capture ends. */
#define DURING(call)                                                                               \
    do {                                                                                           \
        begin(stream, mode);                                                                       \
        int code = call, then = status(stream), last = end(stream);                                \
        printf("  %-58s %d, status %d, end %d\n", #call, code, then, last);                        \
    } while (0)

static void calls_during_a_capture(int mode) {
    size_t free, total;
    DURING(0);
    DURING(cuMemAlloc_v2(&made, 64));
    cuMemAlloc_v2(&made, 64);
    DURING(cuMemFree_v2(made));
    DURING(cuMemHostAlloc(&made, 64, 0));
    DURING(cuMemAllocManaged(&made, 64, 1));
    DURING(cuMemGetInfo_v2(&free, &total));
    DURING(cuMemAllocAsync(&made, 64, other));
    DURING(cuMemAllocAsync(&made, 64, stream));
    DURING(cuMemFreeAsync(memory, stream));
    DURING(cuEventCreate(&made, 2));
    DURING(cuEventDestroy_v2(made));
    DURING(cuStreamCreate(&made, 1));
    DURING(cuStreamDestroy_v2(made));
    DURING(cuEventQuery(event));
    DURING(cuEventSynchronize(event));
    DURING(cuEventElapsedTime(&milliseconds, started, ended));
    DURING(cuEventRecord(fresh, other));
    DURING(cuStreamQuery(other));
    DURING(cuStreamSynchronize(other));
    DURING(cuStreamQuery(stream));
    DURING(cuStreamSynchronize(stream));
    DURING(cuCtxSynchronize());
    DURING(cuMemcpyHtoD_v2(memory, pageable, 8));
    DURING(cuMemcpyDtoH_v2(pageable, memory, 8));
    DURING(cuMemsetD8_v2(memory, 0, 8));
    settle();
    DURING(cuMemcpyHtoDAsync_v2(memory, pageable, 8, other));
    DURING(cuMemcpyDtoHAsync_v2(pageable, memory, 8, other));
    DURING(cuMemcpyDtoHAsync_v2((void *)pinned, memory, 8, other));
    DURING(cuMemcpyHtoDAsync_v2(memory, pageable, 8, stream));
    DURING(cuMemcpyDtoHAsync_v2(pageable, memory, 8, stream));
    DURING(cuMemcpyDtoHAsync_v2((void *)pinned, memory, 8, stream));
    settle();
    DURING(cuMemsetD8Async(memory, 0, 8, 0));
    settle();
    DURING(cuStreamWaitEvent(stream, event, 0));
    DURING((cuEventRecord(fresh, stream), cuEventQuery(fresh)));
    DURING((cuEventRecord(fresh, stream), cuEventSynchronize(fresh)));
    SHOW(cuEventQuery(fresh));
    SHOW(cuStreamWaitEvent(other, fresh, 0));
    DURING((cuEventRecord(fresh, stream), cuStreamWaitEvent(other, fresh, 0),
            cuMemsetD8Async(memory, 0, 8, other)));
    SHOW(status(other));
    DURING(elsewhere(allocate));
    DURING(elsewhere(query));
    DURING(elsewhere(synchronize));
    DURING(elsewhere(end_it));
}

static void captures_of_several_streams(int mode) {
    begin(stream, mode);
    cuEventRecord(fresh, stream);
    cuStreamWaitEvent(other, fresh, 0);
    SHOW(end(other));
    SHOW(status(stream));
    SHOW(end(stream));

    begin(stream, mode);
    begin(blocking, mode);
    cuEventRecord(fresh, stream);
    SHOW(cuStreamWaitEvent(blocking, fresh, 0));
    SHOW(status(stream));
    SHOW(status(blocking));
    SHOW(end(stream));
    SHOW(end(blocking));

    begin(blocking, mode);
    SHOW(status(0));
    SHOW(status(blocking));
    SHOW(cuMemsetD8Async(memory, 0, 8, 0));
    SHOW(status(blocking));
    SHOW(end(blocking));
    begin(blocking, mode);
    SHOW(cuStreamWaitEvent(0, event, 0));
    SHOW(end(blocking));
    begin(blocking, mode);
    SHOW(cuStreamSynchronize(0));
    SHOW(end(blocking));
}

static void graphs(int mode) {
    handle graph = 0, instance = 0, second = 0;
    size_t nodes = 9;
    begin(stream, mode);
    cuMemsetD8Async(memory, 0, 8, stream);
    cuStreamEndCapture(stream, &graph);
    SHOW(cuGraphInstantiateWithFlags(&instance, graph, 0));
    SHOW(cuGraphInstantiateWithFlags(&second, graph, 5));
    SHOW(cuGraphInstantiateWithFlags(&second, graph, 64));
    SHOW(cuGraphInstantiateWithFlags(&second, graph, 8));
    DURING(cuGraphLaunch(instance, other));
    DURING(cuGraphUpload(instance, other));
    DURING(cuGraphInstantiateWithFlags(&second, graph, 0));
    DURING(cuGraphExecDestroy(second));
    SHOW(cuGraphLaunch(instance, 0));
    cuStreamSynchronize(0);
    SHOW(cuGraphGetNodes(graph, NULL, &nodes));
    printf("nodes %zu\n", nodes);
    cuGraphExecDestroy(instance);
    SHOW(cuGraphDestroy(graph));
}

static void modes_of_threads(int mode) {
    int own = 2;
    cuThreadExchangeStreamCaptureMode(&own);
    printf("mode before %d\n", own);
    DURING(cuMemAlloc_v2(&made, 64));
    DURING(cuEventQuery(event));
    DURING(cuStreamSynchronize(other));
    DURING(cuCtxSynchronize());
    DURING(cuMemcpyHtoD_v2(memory, pageable, 8));
    DURING(cuStreamQuery(stream));
    own = 1;
    cuThreadExchangeStreamCaptureMode(&own);
    DURING(cuMemAlloc_v2(&made, 64));
    own = 0;
    cuThreadExchangeStreamCaptureMode(&own);
}

static void contexts_and_names(void) {
    handle current = 9;
    void *function = NULL;
    int found = 9, code;
    const char *name, *text;
    SHOW(cuCtxEnablePeerAccess(context, 0));
    SHOW(cuCtxSetCurrent(0));
    SHOW(cuCtxGetCurrent(&current));
    SHOW(current == 0);
    SHOW(cuCtxPopCurrent_v2(&current));
    SHOW(cuStreamSynchronize(stream));
    SHOW(cuStreamSynchronize(0));
    SHOW(cuEventQuery(event));
    SHOW(cuMemFree_v2(memory));
    SHOW(cuGetProcAddress_v2("cuNothing", &function, 12000, 0, &found));
    printf("found %d, status %d\n", function != NULL, found);
    SHOW(cuGetErrorName(12345, &name));
    SHOW(name == NULL);
    for (code = 0; code < 910; code++) {
        if (!cuGetErrorName(code, &name) && !cuGetErrorString(code, &text)) {
            printf("%d %s: %s\n", code, name, text);
        }
    }
}

int main(void) {
    static const char *const modes[] = {"global", "thread-local", "relaxed"};
    int mode;
    load();
    initialisation_and_memory();
    events_and_streams();
    for (mode = 0; mode < 3; mode++) {
        printf("captures in %s mode\n", modes[mode]);
        calls_during_a_capture(mode);
        captures_of_several_streams(mode);
        graphs(mode);
        modes_of_threads(mode);
    }
    contexts_and_names();
    return 0;
}
