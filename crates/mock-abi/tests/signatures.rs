//! The functions that are exported, against the types that cudarc's bindings call them with.
//!
//! The compiler sees that the numbers of arguments agree, the tests that each argument and the answer
//! are passed in the same way: pointers and handles as words, numbers in their width.

use std::{collections::BTreeSet, env, fs};

use collectives_mock_abi::{cuda, cudart};
use cudarc::{driver, runtime};
use object::{Object as _, ObjectSymbol as _};

/// How arguments and answer are passed: their sizes and alignments.
type Shape = Vec<(usize, usize)>;

trait Signature {
    fn shape(self) -> Shape;
}

macro_rules! signatures {
    ($(($($arg:ident),*))*) => {
        $(
            impl<Answer, $($arg),*> Signature for unsafe fn($($arg),*) -> Answer {
                fn shape(self) -> Shape {
                    vec![passed::<Answer>(), $(passed::<$arg>()),*]
                }
            }

            impl<Answer, $($arg),*> Signature for unsafe extern "C" fn($($arg),*) -> Answer {
                fn shape(self) -> Shape {
                    vec![passed::<Answer>(), $(passed::<$arg>()),*]
                }
            }
        )*
    };
}

signatures! { () (A) (A, B) (A, B, C) (A, B, C, D) (A, B, C, D, E) (A, B, C, D, E, F) (A, B, C, D, E, F, G) }

const fn passed<T>() -> (usize, usize) {
    (size_of::<T>(), align_of::<T>())
}

/// Compares functions of the same number of arguments, by the module that ours are in.
macro_rules! alike {
    ($theirs:path, $ours:ident; $($count:literal $args:tt { $($module:ident: $($name:ident)*;)* })*) => {{
        use $theirs as theirs;
        let mut differ = Vec::new();
        let mut compared = 0;
        $($($(
            let theirs = alike!(@shape theirs::$name, $args);
            let ours = alike!(@own $ours::$module::$name, $args);
            compared += 1;
            if theirs != ours {
                differ.push(format!("{}: cudarc passes {theirs:?}, here it is {ours:?}", stringify!($name)));
            }
        )*)*)*
        assert!(differ.is_empty(), "{}", differ.join("\n"));
        compared
    }};
    (@shape $name:path, ($($arg:tt),*)) => { ($name as unsafe fn($($arg),*) -> _).shape() };
    (@own $name:path, ($($arg:tt),*)) => { ($name as unsafe extern "C" fn($($arg),*) -> _).shape() };
}

#[test]
fn the_driver_is_called_as_cudarc_calls_it() {
    let compared = alike! {
        driver::sys, cuda;
        0 () {
            context: cuCtxSynchronize;
            entry: cuProfilerStart cuProfilerStop;
        }
        1 (_) {
            context: cuCtxDestroy_v2 cuCtxDisablePeerAccess cuCtxGetCacheConfig cuCtxGetCurrent cuCtxGetDevice cuCtxGetFlags cuCtxPopCurrent_v2 cuCtxPushCurrent_v2 cuCtxSetCacheConfig cuCtxSetCurrent cuCtxSetFlags cuCtxSynchronize_v2 cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxReset_v2;
            device: cuDeviceGetCount cuDriverGetVersion cuInit;
            event: cuEventDestroy_v2 cuEventQuery cuEventSynchronize;
            graph: cuGraphDestroy cuGraphExecDestroy;
            memory: cuMemFreeHost cuMemFree_v2 cuMemHostUnregister cuMemPoolDestroy;
            stream: cuStreamDestroy_v2 cuStreamQuery cuStreamSynchronize cuThreadExchangeStreamCaptureMode;
        }
        2 (_, _) {
            context: cuCtxEnablePeerAccess cuCtxGetApiVersion cuCtxGetDevice_v2 cuCtxGetId cuCtxGetLimit cuCtxGetStreamPriorityRange cuCtxSetLimit cuDevicePrimaryCtxRetain cuDevicePrimaryCtxSetFlags_v2;
            device: cuDeviceGet cuDeviceGetByPCIBusId cuDeviceGetDefaultMemPool cuDeviceGetMemPool cuDeviceGetUuid_v2 cuDeviceSetMemPool cuDeviceTotalMem_v2;
            entry: cuGetErrorName cuGetErrorString;
            event: cuEventCreate cuEventRecord;
            graph: cuGraphClone cuGraphLaunch cuGraphUpload;
            memory: cuMemAllocHost_v2 cuMemAlloc_v2 cuMemFreeAsync cuMemGetInfo_v2 cuMemHostGetFlags cuMemPoolCreate cuMemPoolTrimTo;
            stream: cuStreamBeginCapture_v2 cuStreamCreate cuStreamEndCapture cuStreamGetCtx cuStreamGetDevice cuStreamGetFlags cuStreamGetId cuStreamGetPriority cuStreamIsCapturing;
        }
        3 (_, _, _) {
            context: cuDevicePrimaryCtxGetState;
            device: cuDeviceCanAccessPeer cuDeviceComputeCapability cuDeviceGetAttribute cuDeviceGetName cuDeviceGetPCIBusId;
            event: cuEventElapsedTime_v2 cuEventRecordWithFlags;
            graph: cuGraphGetNodes cuGraphInstantiateWithFlags cuGraphInstantiateWithParams;
            memory: cuMemAllocAsync cuMemAllocManaged cuMemGetAddressRange_v2 cuMemHostAlloc cuMemHostGetDevicePointer_v2 cuMemHostRegister_v2 cuMemPoolGetAccess cuMemPoolGetAttribute cuMemPoolSetAccess cuMemPoolSetAttribute cuMemcpy cuMemcpyDtoD_v2 cuMemcpyDtoH_v2 cuMemcpyHtoD_v2 cuMemsetD16_v2 cuMemsetD32_v2 cuMemsetD8_v2 cuPointerGetAttribute cuPointerSetAttribute;
            stream: cuLaunchHostFunc cuStreamCreateWithPriority cuStreamGetCtx_v2 cuStreamWaitEvent;
        }
        4 (_, _, _, _) {
            context: cuCtxCreate_v4;
            device: cuDeviceGetP2PAttribute;
            memory: cuMemAdvise_v2 cuMemAllocFromPoolAsync cuMemcpyAsync cuMemcpyDtoDAsync_v2 cuMemcpyDtoHAsync_v2 cuMemcpyHtoDAsync_v2 cuMemsetD16Async cuMemsetD32Async cuMemsetD8Async cuPointerGetAttributes;
            stream: cuStreamAddCallback cuStreamAttachMemAsync;
        }
        5 (_, _, _, _, _) {
            entry: cuGetProcAddress_v2;
            memory: cuMemAllocPitch_v2 cuMemPrefetchAsync_v2 cuMemcpyPeer;
        }
        6 (_, _, _, _, _, _) {
            memory: cuMemcpyPeerAsync;
        }
        7 (_, _, _, _, _, _, _) {
            stream: cuStreamGetCaptureInfo_v3;
        }
    };
    println!("{compared} functions");
}

#[test]
fn the_runtime_is_called_as_cudarc_calls_it() {
    let compared = alike! {
        runtime::sys, cudart;
        0 () {
            device: cudaDeviceReset cudaDeviceSynchronize cudaGetLastError cudaPeekAtLastError;
        }
        1 (_) {
            device: cudaDeviceDisablePeerAccess cudaDriverGetVersion cudaGetDevice cudaGetDeviceCount cudaGetErrorName cudaGetErrorString cudaRuntimeGetVersion cudaSetDevice cudaSetDeviceFlags;
            memory: cudaFree cudaFreeHost cudaHostUnregister cudaMemPoolDestroy;
            stream: cudaEventCreate cudaEventDestroy cudaEventQuery cudaEventSynchronize cudaGraphDestroy cudaGraphExecDestroy cudaStreamCreate cudaStreamDestroy cudaStreamQuery cudaStreamSynchronize cudaThreadExchangeStreamCaptureMode;
        }
        2 (_, _) {
            device: cudaDeviceEnablePeerAccess cudaDeviceGetByPCIBusId cudaDeviceGetDefaultMemPool cudaDeviceGetMemPool cudaDeviceGetStreamPriorityRange cudaDeviceSetMemPool;
            memory: cudaFreeAsync cudaHostGetFlags cudaMalloc cudaMallocHost cudaMemGetInfo cudaMemPoolTrimTo;
            own: cudaGetDeviceProperties cudaPointerGetAttributes cudaStreamGetId;
            stream: cudaEventCreateWithFlags cudaEventRecord cudaGraphClone cudaGraphLaunch cudaGraphUpload cudaStreamBeginCapture cudaStreamCreateWithFlags cudaStreamEndCapture cudaStreamGetDevice cudaStreamGetFlags cudaStreamGetPriority cudaStreamIsCapturing;
        }
        3 (_, _, _) {
            device: cudaDeviceCanAccessPeer cudaDeviceGetPCIBusId;
            memory: cudaHostAlloc cudaHostGetDevicePointer cudaHostRegister cudaMallocAsync cudaMallocManaged cudaMemPoolGetAttribute cudaMemPoolSetAttribute cudaMemset;
            own: cudaDeviceGetAttribute cudaGraphInstantiate;
            stream: cudaEventElapsedTime cudaEventRecordWithFlags cudaGraphGetNodes cudaGraphInstantiateWithFlags cudaLaunchHostFunc cudaStreamCreateWithPriority cudaStreamWaitEvent;
        }
        4 (_, _, _, _) {
            memory: cudaMallocFromPoolAsync cudaMemcpy cudaMemsetAsync;
            own: cudaGetDriverEntryPoint;
            stream: cudaStreamAddCallback;
        }
        5 (_, _, _, _, _) {
            memory: cudaMemcpyAsync cudaMemcpyPeer;
            own: cudaGetDriverEntryPointByVersion;
        }
        6 (_, _, _, _, _, _) {
            memory: cudaMemcpyPeerAsync;
        }
        7 (_, _, _, _, _, _, _) {
            own: cudaStreamGetCaptureInfo;
        }
    };
    println!("{compared} functions");
}

/// Bindings that look all names up when they load panic on the first that is missing.
#[test]
fn every_name_of_the_driver_is_exported() {
    let test = env::current_exe().expect("a test has a path");
    let library = fs::read(test.with_file_name("libcollectives_mock_abi.so"));
    let library = library.expect("the library is built with its tests");
    let library = object::File::parse(&*library).expect("it is ELF");
    let exports: BTreeSet<&str> =
        library.dynamic_symbols().filter_map(|symbol| symbol.name().ok()).collect();
    // Those that cudarc knows, of CUDA 11.4 to 13.4.
    let names = include_str!("symbols/cuda-driver.txt");
    let missing: Vec<_> = names.lines().filter(|name| !exports.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // What is done is not refused as well: it would be exported twice.
    let done = names.lines().filter(|name| !cuda::stubs::NAMES.contains(name)).count();
    assert_eq!(done, 132);
}
