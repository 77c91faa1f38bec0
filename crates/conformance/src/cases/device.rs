//! Memory, copies and events, without a collective.

use std::collections::BTreeSet;

use collectives_core::{Backend, DType, Device, ErrorKind};

use crate::{
    check::{Outcome, check, check_eq, fails, refused},
    ctx::Ctx,
    inputs::inputs,
    workspace::UNTOUCHED,
};

pub(super) fn knows_itself<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let info = ctx.here.device.info();
    check_eq("backend", info.backend, ctx.backend.info().backend)?;
    check_eq("ordinal", info.ordinal, ctx.devices[ctx.rank])?;
    check(!info.name.is_empty(), "a name")?;
    check(info.total_memory > 0, "memory")?;
    check(ctx.backend.device_count()? > info.ordinal, "a device beyond the count")
}

pub(super) fn memory_is_aligned_and_distinct<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let device = &ctx.here.device;
    let sizes = [0, 0, 1, 1, 255, 257, 1 << 20];
    let allocations =
        sizes.iter().map(|&bytes| Ok(device.alloc(bytes)?)).collect::<Outcome<Vec<_>>>()?;
    for &pointer in &allocations {
        check(!pointer.is_null(), "an address")?;
        check(pointer.addr().is_multiple_of(256), "aligned to 256 bytes")?;
    }
    let distinct: BTreeSet<_> = allocations.iter().map(|pointer| pointer.addr()).collect();
    check_eq("number of addresses", distinct.len(), sizes.len())?;
    for pointer in allocations {
        // SAFETY: allocated above and never used.
        unsafe { device.free(pointer, ctx.here.stream) }?;
    }
    Ok(())
}

pub(super) fn copies_round_trip<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    for count in [0, 1, 7, 1 << 20, (1 << 20) + 1] {
        let values = inputs::<u8>(None, ctx.seed, ctx.rank, ctx.size, count);
        let first = ctx.here.upload(&values)?;
        let second = ctx.here.alloc(DType::U8, count)?;
        ctx.here.copy(second, first, ctx.here.stream)?;
        check(ctx.here.read::<u8>(second)? == values, format!("a copy of {count} bytes"))?;
    }
    Ok(())
}

pub(super) fn copies_reach_other_devices<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let there = ctx.elsewhere((ctx.rank + 1) % ctx.size)?;
    let values = inputs::<i32>(None, ctx.seed, ctx.rank, ctx.size, 1025);
    let source = ctx.here.upload(&values)?;
    let target = there.alloc(DType::I32, values.len())?;
    // The filling of the target comes first; its event belongs to the other device.
    let filled = there.new_event()?;
    there.record(filled, there.stream)?;
    ctx.here.wait(ctx.here.stream, filled)?;
    ctx.here.copy(target, source, ctx.here.stream)?;
    let copied = ctx.here.new_event()?;
    ctx.here.record(copied, ctx.here.stream)?;
    there.wait(there.stream, copied)?;
    check_eq("the copy", there.read::<i32>(target)?, values)?;
    there.settle()
}

pub(super) fn memset_fills_exactly_its_range<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let memory = ctx.here.alloc(DType::U8, 1000)?;
    ctx.here.fill(memory.part(13, 700), 0x3c)?;
    ctx.here.fill(memory.part(0, 0), 0xff)?;
    let want = [vec![UNTOUCHED; 13], vec![0x3c; 700], vec![UNTOUCHED; 287]].concat();
    check_eq("the memory", ctx.here.read::<u8>(memory)?, want)
}

pub(super) fn an_event_never_recorded_holds_nothing<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let event = ctx.here.new_event()?;
    check(ctx.here.query(event)?, "an event never recorded counts as reached")?;
    ctx.here.wait(ctx.here.stream, event)?;
    Ok(ctx.here.synchronize()?)
}

pub(super) fn an_event_is_reached_when_its_stream_has_passed_it<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let event = ctx.here.new_event()?;
    for value in 0..3_u8 {
        let memory = ctx.here.alloc(DType::U8, 1 << 20)?;
        ctx.here.fill(memory, value)?;
        ctx.here.record(event, ctx.here.stream)?;
        ctx.here.synchronize()?;
        check(ctx.here.query(event)?, "the event is reached")?;
    }
    Ok(())
}

pub(super) fn an_impossible_allocation_is_out_of_memory<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let bytes = 1 << 56;
    let error = refused(ErrorKind::OutOfMemory, "64 PiB", ctx.here.device.alloc(bytes))?;
    check(error.to_string().contains(&bytes.to_string()), "the size in the error")?;
    check_eq("an allocation after it", ctx.here.alloc(DType::F32, 3)?.count, 3)
}

pub(super) fn an_ordinal_out_of_range_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let count = ctx.backend.device_count()?;
    for ordinal in [count, usize::MAX] {
        let outcome = ctx.backend.device(ordinal);
        let error = fails(ErrorKind::InvalidArgument, format!("device {ordinal}"), outcome)?;
        check(error.to_string().contains(&count.to_string()), "the number of devices")?;
    }
    Ok(())
}
