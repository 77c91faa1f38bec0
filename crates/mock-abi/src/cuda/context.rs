//! Contexts.

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

use super::{CUcontext, CUdevice, current, current_seat, driver, seat};
use crate::gpu::{
    Code, Out, Reply,
    context::{self as contexts, Context},
    device::Face,
    stream::{PRIORITIES, synchronize_device},
};

driver! {
    /// Makes the primary context of a device, or one more owner of it.
    fn cuDevicePrimaryCtxRetain(context: Out<CUcontext>, device: CUdevice) {
        context.set(contexts::retain_primary(seat(device)?.ordinal())?.bits())
    }

    /// Gives up an ownership of the primary context.
    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) {
        contexts::release_primary(seat(device)?.ordinal())
    }

    /// Waits for the work of a device; what was made on it is left alone.
    fn cuDevicePrimaryCtxReset_v2(device: CUdevice) {
        synchronize_device(seat(device)?)
    }

    /// Tells the flags of a primary context, and whether it has owners.
    fn cuDevicePrimaryCtxGetState(device: CUdevice, flags: Out<c_uint>, active: Out<c_int>) {
        let (set, is_active) = contexts::primary_state(seat(device)?.ordinal());
        flags.set(set)?;
        active.set(is_active.into())
    }

    /// Sets the flags of a primary context; they mean nothing here.
    fn cuDevicePrimaryCtxSetFlags_v2(device: CUdevice, flags: c_uint) {
        contexts::set_primary_flags(seat(device)?.ordinal(), flags);
        Ok(())
    }

    /// Makes a context, which is current.
    fn cuCtxCreate_v2(context: Out<CUcontext>, _flags: c_uint, device: CUdevice) {
        create(context, device)
    }

    /// Makes a context, which is current. Its share of the device is the whole.
    fn cuCtxCreate_v3(
        context: Out<CUcontext>,
        _parameters: *mut c_void,
        _count: c_int,
        _flags: c_uint,
        device: CUdevice,
    ) {
        create(context, device)
    }

    /// Makes a context, which is current. Its share of the device is the whole.
    fn cuCtxCreate_v4(
        context: Out<CUcontext>,
        _parameters: *mut c_void,
        _flags: c_uint,
        device: CUdevice,
    ) {
        create(context, device)
    }

    /// Destroys a context that a program made.
    fn cuCtxDestroy_v2(context: CUcontext) {
        contexts::initialized()?;
        contexts::destroy(Context::from_bits(context)?)
    }

    /// Tells the current context; null where there is none.
    fn cuCtxGetCurrent(context: Out<CUcontext>) {
        contexts::initialized()?;
        context.set(contexts::current().map_or(0, Context::bits))
    }

    /// Makes a context current in the place of the one that is.
    fn cuCtxSetCurrent(context: CUcontext) {
        contexts::initialized()?;
        contexts::set_current(from_handle(context)?)
    }

    /// Makes a context current until it is popped.
    fn cuCtxPushCurrent_v2(context: CUcontext) {
        contexts::initialized()?;
        contexts::push(Context::from_bits(context)?)
    }

    /// Makes the context current that was so before.
    fn cuCtxPopCurrent_v2(context: Out<CUcontext>) {
        contexts::initialized()?;
        context.set_if(contexts::pop()?.bits());
        Ok(())
    }

    /// Tells the device of the current context.
    fn cuCtxGetDevice(device: Out<CUdevice>) {
        device.set(Face::Cuda.number(current()?.device())?)
    }

    /// Tells the device of a context.
    fn cuCtxGetDevice_v2(device: Out<CUdevice>, context: CUcontext) {
        let context = from_handle(context)?.map_or_else(current, Ok)?;
        device.set(Face::Cuda.number(context.device())?)
    }

    /// Tells the flags of the current context.
    fn cuCtxGetFlags(flags: Out<c_uint>) {
        flags.set(contexts::primary_state(current()?.device()).0)
    }

    /// Sets the flags of the current context; they mean nothing here.
    fn cuCtxSetFlags(flags: c_uint) {
        contexts::set_primary_flags(current()?.device(), flags);
        Ok(())
    }

    /// Tells a number that no other context has.
    fn cuCtxGetId(context: CUcontext, id: Out<c_ulonglong>) {
        id.set(from_handle(context)?.map_or_else(current, Ok)?.bits() as c_ulonglong)
    }

    /// Waits for all work of the current device.
    fn cuCtxSynchronize() {
        synchronize_device(current_seat()?)
    }

    /// Waits for all work of a context's device.
    fn cuCtxSynchronize_v2(context: CUcontext) {
        let context = from_handle(context)?.map_or_else(current, Ok)?;
        synchronize_device(context.seat()?)
    }

    /// Tells a limit of kernels, as they are on a GPU.
    fn cuCtxGetLimit(value: Out<usize>, limit: c_uint) {
        current()?;
        value.set(LIMITS.get(limit as usize).copied().ok_or(Code::INVALID_VALUE)?)
    }

    /// Sets a limit of kernels, of which there are none here.
    fn cuCtxSetLimit(limit: c_uint, _value: usize) {
        current()?;
        LIMITS.get(limit as usize).map(drop).ok_or(Code::INVALID_VALUE)
    }

    /// Tells the preferred division of a cache that is not there: no preference.
    fn cuCtxGetCacheConfig(config: Out<c_uint>) {
        current()?;
        config.set(0)
    }

    /// Sets a preference that is not looked at.
    fn cuCtxSetCacheConfig(config: c_uint) {
        current()?;
        if config <= 3 { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }

    /// Tells the version of the interface.
    fn cuCtxGetApiVersion(context: CUcontext, version: Out<c_uint>) {
        from_handle(context)?.map_or_else(current, Ok)?;
        version.set(API_VERSION)
    }

    /// Tells the least and the greatest priority of streams.
    fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) {
        current()?;
        least.set_if(PRIORITIES.0);
        greatest.set_if(PRIORITIES.1);
        Ok(())
    }

    /// Opens the memory of a peer to the current context.
    fn cuCtxEnablePeerAccess(peer: CUcontext, flags: c_uint) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let (own, peer) = (current()?, Context::from_bits(peer)?);
        if own.device() == peer.device() {
            return Err(Code::PEER_ACCESS_UNSUPPORTED);
        }
        own.seat()?.set_peer_access(peer.device(), true)
    }

    /// Closes the memory of a peer.
    fn cuCtxDisablePeerAccess(peer: CUcontext) {
        current_seat()?.set_peer_access(Context::from_bits(peer)?.device(), false)
    }
}

fn create(context: Out<CUcontext>, device: CUdevice) -> Reply {
    if context.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    context.set(contexts::create(seat(device)?.ordinal())?.bits())
}

fn from_handle(context: CUcontext) -> Reply<Option<Context>> {
    if context == 0 { Ok(None) } else { Context::from_bits(context).map(Some) }
}

/// `CUlimit`: stack, print buffer, heap, depth, pending launches, granularity of fetches, persisting
/// cache.
const LIMITS: [usize; 7] = [1024, 1 << 20, 8 << 20, 2, 2048, 128, 0];
const API_VERSION: c_uint = 3020;
