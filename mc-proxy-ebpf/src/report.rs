//! What the program tells: counters, which are exact, and events of single packets, which are not complete. All of it
//! is this CPU's own: nothing is locked and no cache line is shared on the way of a packet.

use aya_ebpf::{
    helpers::bpf_ktime_get_boot_ns,
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
    programs::XdpContext,
};
use mc_proxy_common::{
    event::DropEvent,
    maps::{Budget, CONTROL_WORDS, COUNTERS_MAX, Control, Counter, EVENT_BYTES, GROUPS_MAX, GroupCounter},
    reason::Reason,
    verdict::Verdict,
};

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
pub(crate) fn count(reason: u32, bytes: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason) {
        // SAFETY: the element is this CPU's own, XDP programs do not interrupt each other on a CPU, and map values live
        // as long as the program.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
}

/// Counts a frame for a group whose rules only count.
#[inline(always)]
pub(crate) fn would_drop(group: u32, bytes: u64) {
    if let Some(counter) = GROUPS.get_ptr_mut(group) {
        // SAFETY: as above.
        unsafe {
            (*counter).would_packets += 1;
            (*counter).would_bytes += bytes;
        }
    }
}

/// Counts a dropped frame for its rule's group, and sends an event if there is budget for it.
#[inline(always)]
pub(crate) fn dropped(ctx: &XdpContext, verdict: &Verdict, bytes: u64) {
    if let Some(counter) = GROUPS.get_ptr_mut(verdict.group) {
        // SAFETY: as above.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
    if has_budget(verdict.reason == Reason::RateLimited.index()) {
        send(ctx, verdict, bytes);
    }
}

#[inline(always)]
fn has_budget(is_rate: bool) -> bool {
    let (Some(epoch), Some(budget)) = (CONTROL.get(Control::Epoch as u32), BUDGETS.get_ptr_mut(0)) else {
        return false;
    };
    // SAFETY: as above.
    let budget = unsafe { &mut *budget };
    if budget.epoch != *epoch {
        let word = |which: Control| CONTROL.get(which as u32).copied().unwrap_or(0);
        *budget = Budget { epoch: *epoch, drops: word(Control::DropBudget), rate: word(Control::RateBudget) };
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

/// Out of the hot path.
#[inline(always)]
fn send(ctx: &XdpContext, verdict: &Verdict, bytes: u64) {
    if let Some(mut record) = EVENTS.reserve::<DropEvent>(0) {
        // SAFETY: a helper without arguments.
        let now = unsafe { bpf_ktime_get_boot_ns() };
        let mut event = DropEvent::new(now, verdict.source, verdict.reason);
        event.interface = ctx.ingress_ifindex() as u32;
        event.bytes = bytes as u32;
        event.group = verdict.group;
        event.port = verdict.port;
        record.write(event);
        record.submit(0);
    }
}
