// What the mock's operations are compared with: those of MPI. One source for any MPI library.
//
//     mpicc.openmpi -std=c11 -O3 -o mpi-openmpi benches/peers/mpi.c
//     mpirun.openmpi -n 2 --bind-to core ./mpi-openmpi all_reduce [-b BYTES] [-e BYTES]
//     mpicc.mpich -std=c11 -O3 -o mpi-mpich benches/peers/mpi.c
//     mpirun.mpich -n 2 -bind-to core ./mpi-mpich all_reduce [-b BYTES] [-e BYTES]
//
// Blocking calls return when the result is there, so there is no second column, and --sync-each
// measures the same loop: an MPI program waits for each operation either way. Both are accepted
// because for an asynchronous library they differ, and each is to be held against its like.
//
// MPI_Bcast works in place: the root sends from its input and has no other result. Hold it against
// in-place figures.

#include "peer.h"

#include <mpi.h>

static int rank, ranks;

static void call(enum operation operation, const struct shape *shape, float *send, float *recv) {
    const MPI_Comm comm = MPI_COMM_WORLD;
    const int count = (int)shape->count;
    switch (operation) {
    case ALL_REDUCE:
        MPI_Allreduce(send, recv, count, MPI_FLOAT, MPI_SUM, comm);
        break;
    case ALL_GATHER:
        MPI_Allgather(send, count, MPI_FLOAT, recv, count, MPI_FLOAT, comm);
        break;
    case REDUCE_SCATTER:
        MPI_Reduce_scatter_block(send, recv, count, MPI_FLOAT, MPI_SUM, comm);
        break;
    case BROADCAST:
        MPI_Bcast(rank == 0 ? send : recv, count, MPI_FLOAT, 0, comm);
        break;
    default:
        MPI_Sendrecv(send, count, MPI_FLOAT, (rank + 1) % ranks, 0, recv, count, MPI_FLOAT,
                     (rank + ranks - 1) % ranks, 0, comm, MPI_STATUS_IGNORE);
        break;
    }
}

// Seconds that so many calls took.
static double run(const struct plan *plan, const struct shape *shape, enum operation operation,
                  float *send, float *recv, int times) {
    double start = MPI_Wtime();
    size_t at = 0;
    for (int n = 0; n < times; n++) {
        call(operation, shape, send + at, recv + at);
        at = next_place(plan, shape, at);
    }
    return MPI_Wtime() - start;
}

// "Open MPI v4.1.4, package: …" and "MPICH Version:\t4.0.2\nMPICH Release date: …" as "Open MPI
// 4.1.4" and "MPICH 4.0.2".
static void library_name(char name[MPI_MAX_LIBRARY_VERSION_STRING]) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    MPI_Get_library_version(text, &length);
    text[strcspn(text, ",\n")] = '\0';
    size_t name_end = strcspn(text, "0123456789");
    const char *version = text + name_end;
    while (name_end > 0 && strchr(" \t:v", text[name_end - 1]) != NULL) {
        name_end--;
    }
    text[name_end] = '\0';
    char *word = strstr(text, " Version");
    if (word != NULL) {
        *word = '\0';
    }
    strcpy(name, text);
    strcat(name, " ");
    strcat(name, version);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);

    const struct options options =
        parse(argc, argv,
              "mpirun -n RANKS mpi OPERATION [-b BYTES] [-e BYTES] [--sync-each] [--iters N] "
              "[--warmup N]");
    if (options.ranks != 0 || options.threads != 0) {
        fprintf(stderr, "the number of ranks is mpirun's -n\n");
        return BAD_USAGE;
    }
    const enum operation operation = options.operation;
    struct plan plan = plan_of(&options, ranks);
    float *send = allocate_input(rank, plan.largest);
    float *recv = allocate(plan.largest);
    if (rank == 0) {
        char library[MPI_MAX_LIBRARY_VERSION_STRING];
        library_name(library);
        print_settings(&options, library, ranks);
    }

    for (int i = 0; i < plan.number; i++) {
        struct repeated *size = &plan.sizes[i];
        const struct shape *shape = &size->shape;
        run(&plan, shape, operation, send, recv, 1);
        MPI_Barrier(MPI_COMM_WORLD);
        double seconds = run(&plan, shape, operation, send, recv, SAMPLE) / SAMPLE;
        MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
        size->times = affordable(&options, size->times, seconds);
        run(&plan, shape, operation, send, recv, warmup(&options, size->times));
    }
    for (int i = 0; i < plan.number; i++) {
        const struct shape *shape = &plan.sizes[i].shape;
        const int times = plan.sizes[i].times;
        clear(recv, shape->recv);
        MPI_Barrier(MPI_COMM_WORLD); // a rank that sends must not meet one that still clears
        run(&plan, shape, operation, send, recv, 1);
        if (!(operation == BROADCAST && rank == 0) &&
            !is_right(operation, shape, ranks, rank, recv)) {
            MPI_Abort(MPI_COMM_WORLD, WRONG_DATA);
        }

        run(&plan, shape, operation, send, recv, 1);
        MPI_Barrier(MPI_COMM_WORLD);
        double microseconds = run(&plan, shape, operation, send, recv, times) * 1e6 / times;
        double sum = 0;
        // What comes next takes no time from ranks that still measure.
        MPI_Barrier(MPI_COMM_WORLD);
        MPI_Reduce(&microseconds, &sum, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
        if (rank == 0) {
            printf("%zu %.3f\n", shape->largest * sizeof(float), sum / ranks);
            fflush(stdout);
        }
    }
    free(recv);
    free(send);
    MPI_Finalize();
    return 0;
}
