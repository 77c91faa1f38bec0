/*
 * A library with NCCL's names and nothing behind them, for tests of the loader.
 *
 * VERSION: what ncclGetVersion tells. VERSION_RESULT: what it answers. WITHOUT_P2P: as before 2.7.3.
 * The functions but ncclGetVersion and ncclGetErrorString are never called.
 */
#ifndef VERSION_RESULT
#define VERSION_RESULT 0
#endif

int ncclGetVersion(int *version) {
    *version = VERSION;
    return VERSION_RESULT;
}

const char *ncclGetErrorString(int result) {
    return result == 0 ? "no error" : "a text of the stub";
}

#define NEVER_CALLED(name) int name(void) { return 3; }
NEVER_CALLED(ncclGetUniqueId)
NEVER_CALLED(ncclCommInitRank)
NEVER_CALLED(ncclCommDestroy)
NEVER_CALLED(ncclAllReduce)
NEVER_CALLED(ncclAllGather)
NEVER_CALLED(ncclReduceScatter)
NEVER_CALLED(ncclBroadcast)
NEVER_CALLED(ncclReduce)
#ifndef WITHOUT_P2P
NEVER_CALLED(ncclSend)
NEVER_CALLED(ncclRecv)
#endif
NEVER_CALLED(ncclGroupStart)
NEVER_CALLED(ncclGroupEnd)
NEVER_CALLED(ncclCommAbort)
NEVER_CALLED(ncclAllToAll)
