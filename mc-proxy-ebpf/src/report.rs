//! What the program tells: counters, which are exact, and events of single packets, which are not complete. All of it
//! is this CPU's own: nothing is locked and no cache line is shared on the way of a packet.

use aya_ebpf::{
    helpers::bpf_ktime_get_boot_ns,
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
    programs::XdpContext,
};
use core::sync::atomic::AtomicU64;

use mc_proxy_common::{
    atomic,
    event::DropEvent,
    maps::{Budget, CONTROL_WORDS, COUNTERS_MAX, Control, Counter, EVENT_BYTES, GROUPS_MAX, GroupCounter},
    packet::Packet,
    reason::Reason,
    verdict::Verdict,
};

use crate::{frame::XdpCursor, maps::KernelHost};

#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(COUNTERS_MAX, 0);
#[map]
static GROUPS: PerCpuArray<GroupCounter> = PerCpuArray::with_max_entries(GROUPS_MAX, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_BYTES, 0);
#[map]
static BUDGETS: PerCpuArray<Budget> = PerCpuArray::with_max_entries(1, 0);
#[map]
static CONTROL: Array<u64> = Array::with_max_entries(CONTROL_WORDS, aya_ebpf::bindings::BPF_F_MMAPABLE);

/// Counts a frame by what became of it.
#[inline(always)]
pub(crate) fn count<const GUARDED: bool>(host: &KernelHost<'_, GUARDED>, reason: u32, bytes: u64) {
    let counter: *mut Counter = host.element(&COUNTERS, reason);
    // SAFETY: the element is this CPU's own, XDP programs do not interrupt each other on a CPU, and map values live as
    // long as the program.
    if let Some(counter) = unsafe { counter.as_mut() } {
        counter.packets += 1;
        counter.bytes += bytes;
    }
}

/// Counts a frame for a group whose rules only count.
#[inline(always)]
pub(crate) fn would_drop<const GUARDED: bool>(host: &KernelHost<'_, GUARDED>, group: u32) {
    // SAFETY: as above.
    if let Some(counter) = unsafe { host.element::<_, GroupCounter>(&GROUPS, group).as_mut() } {
        counter.would_packets += 1;
        counter.would_bytes += host.bytes();
    }
}

/// Counts a dropped frame for its rule's group, and sends an event if there is budget for it.
#[inline(always)]
pub(crate) fn dropped<const GUARDED: bool>(
    host: &KernelHost<'_, GUARDED>,
    ctx: &XdpContext,
    verdict: Verdict,
    bytes: u64,
) {
    // SAFETY: as above.
    if let Some(counter) = unsafe { host.element::<_, GroupCounter>(&GROUPS, verdict.group).as_mut() } {
        counter.packets += 1;
        counter.bytes += bytes;
    }
    if has_budget(host, verdict.reason == Reason::RateLimited.index()) {
        send(host, ctx, verdict);
    }
}

#[inline(always)]
fn has_budget<const GUARDED: bool>(host: &KernelHost<'_, GUARDED>, is_rate: bool) -> bool {
    let control = |which: Control| {
        // SAFETY: a word that the daemon writes whole.
        unsafe { host.element::<_, AtomicU64>(&CONTROL, which as u32).as_ref() }.map_or(0, atomic::load)
    };
    let epoch = control(Control::Epoch);
    // SAFETY: as above.
    let Some(budget) = (unsafe { host.element::<_, Budget>(&BUDGETS, 0).as_mut() }) else { return false };
    if budget.epoch != epoch {
        *budget = Budget { epoch, drops: control(Control::DropBudget), rate: control(Control::RateBudget) };
    }
    // Written out twice, because without `CAP_PERFMON` a pointer into a map value must not depend on a condition.
    if is_rate {
        if budget.rate == 0 {
            return false;
        }
        budget.rate -= 1;
    } else {
        if budget.drops == 0 {
            return false;
        }
        budget.drops -= 1;
    }
    true
}

/// Sends an event. The packet is parsed anew: the way of all others has no room for what only this one needs.
#[inline(always)]
fn send<const GUARDED: bool>(host: &KernelHost<'_, GUARDED>, ctx: &XdpContext, verdict: Verdict) {
    let (source, port) = match Packet::parse(XdpCursor::start(ctx)) {
        Ok(packet) => (packet.source(), packet.port()),
        Err(_) => return,
    };
    let Some(mut record) = EVENTS.reserve::<DropEvent>(0) else { return };
    let event = record.as_mut_ptr();
    // SAFETY: the record is of this size and ours until it is submitted. Field by field, so that nothing of it is made
    // on the stack first.
    unsafe {
        (&raw mut (*event).at).write_volatile(bpf_ktime_get_boot_ns());
        (&raw mut (*event).source.high).write_volatile(source.high);
        (&raw mut (*event).source.low).write_volatile(source.low);
        (&raw mut (*event).interface).write_volatile(ctx.ingress_ifindex() as u32);
        (&raw mut (*event).bytes).write_volatile(host.bytes() as u32);
        (&raw mut (*event).group).write_volatile(verdict.group);
        (&raw mut (*event).port).write_volatile(port);
        (&raw mut (*event).reason).write_volatile(verdict.reason as u16);
    }
    record.submit(0);
}
