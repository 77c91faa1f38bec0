// MPI_Allreduce of float sums, out of place: what the mock's all_reduce is compared with.
//
//     mpicc -O3 -o all_reduce benches/openmpi/all_reduce.c
//     mpirun -n 2 --bind-to core ./all_reduce [--sync-each] [min bytes [max bytes]]
//
// Sizes double from 8 B to 64 MiB. Two ways to time them:
//
//   loop       (default) N calls between two clock readings, divided by N.
//   sync-each  each call between two clock readings of its own, and the mean of them.
//
// MPI_Allreduce returns when the result is there, so both issue the same calls, one after another
// and with no barrier between them: sync-each adds only the cost of the clock. They are told apart
// because for an asynchronous library they differ, and each is to be held against its like.
//
// As `collectives perf` and nccl-tests do, call i works on another part of the buffers than call
// i - 1, so that small sizes do not live in the caches alone on one side of the comparison.
//
// A time is the mean over the ranks, as in nccl-tests. Every size is checked once, outside the
// timing. Output, on rank 0: lines of "bytes microseconds"; lines with # are for people.

#include <mpi.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// About as many bytes for each size, so that every size takes a comparable time, within bounds
// that keep the mean of small sizes steady and large sizes short.
static int iterations(size_t bytes) {
    const size_t budget = (size_t)256 << 20;
    const size_t most = 20000, least = 10;
    size_t n = budget / bytes;
    return (int)(n > most ? most : n < least ? least : n);
}

static void all_reduce(const float *send, float *recv, size_t count) {
    MPI_Allreduce(send, recv, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

// Microseconds for one call: the mean over `n` calls on this rank. The buffers hold `places` times
// `count` elements.
static double time_calls(const float *send, float *recv, size_t count, size_t places, int n,
                         bool sync_each) {
    double seconds = 0;
    if (sync_each) {
        for (int i = 0; i < n; i++) {
            size_t at = (size_t)i % places * count;
            double start = MPI_Wtime();
            all_reduce(send + at, recv + at, count);
            seconds += MPI_Wtime() - start;
        }
    } else {
        double start = MPI_Wtime();
        for (int i = 0; i < n; i++) {
            size_t at = (size_t)i % places * count;
            all_reduce(send + at, recv + at, count);
        }
        seconds = MPI_Wtime() - start;
    }
    return seconds * 1e6 / n;
}

// Integers below 2^24 add up exactly, so any right order of additions gives these very values.
static float input(int rank, size_t index) { return (float)(index % 1024 + (size_t)rank); }

static void check(const float *recv, size_t count, int ranks, int rank) {
    for (size_t i = 0; i < count; i++) {
        float want = 0;
        for (int peer = 0; peer < ranks; peer++) {
            want += input(peer, i);
        }
        if (recv[i] != want) {
            fprintf(stderr, "rank %d: element %zu of %zu is %g, want %g\n", rank, i, count,
                    (double)recv[i], (double)want);
            MPI_Abort(MPI_COMM_WORLD, 1);
        }
    }
}

static float *allocate(size_t bytes) {
    float *memory = malloc(bytes);
    if (memory == NULL) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    return memory;
}

static size_t size_argument(const char *text) {
    char *end = NULL;
    unsigned long long bytes = strtoull(text, &end, 10);
    if (end == text || *end != '\0' || bytes < sizeof(float) || bytes > (size_t)1 << 30) {
        fprintf(stderr, "'%s' is no size: want a number of bytes from 4 to 1073741824\n", text);
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    return (size_t)bytes;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);

    bool sync_each = argc > 1 && strcmp(argv[1], "--sync-each") == 0;
    int first = sync_each ? 2 : 1;
    size_t min = argc > first ? size_argument(argv[first]) : 8;
    size_t max = argc > first + 1 ? size_argument(argv[first + 1]) : (size_t)64 << 20;

    float *send = allocate(max);
    float *recv = allocate(max);
    for (size_t i = 0; i < max / sizeof(float); i++) {
        send[i] = input(rank, i);
    }
    memset(recv, 0, max); // so that no page is touched first inside the timing

    if (rank == 0) {
        char library[MPI_MAX_LIBRARY_VERSION_STRING];
        int length;
        MPI_Get_library_version(library, &length);
        library[strcspn(library, ",\n")] = '\0';
        printf("# library: %s\n# ranks: %d, mode: %s\n# bytes us\n", library, ranks,
               sync_each ? "sync-each" : "loop");
    }
    for (size_t bytes = min; bytes <= max; bytes *= 2) {
        size_t count = bytes / sizeof(float);
        int n = iterations(bytes);
        for (int i = 0; i < n / 10 + 2; i++) {
            all_reduce(send, recv, count);
        }
        check(recv, count, ranks, rank);

        MPI_Barrier(MPI_COMM_WORLD);
        double mine = time_calls(send, recv, count, max / bytes, n, sync_each);
        double sum = 0;
        MPI_Reduce(&mine, &sum, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
        if (rank == 0) {
            printf("%zu %.3f\n", bytes, sum / ranks);
            fflush(stdout);
        }
    }
    free(recv);
    free(send);
    MPI_Finalize();
    return 0;
}
