//! Has chgrp(2) to a group that the user is in answer as elsewhere where it cannot be done.
//!
//! An ordinary user's namespace has one group. To the kernel every other number in it is nonsense (`EINVAL`), which programs take for
//! a fault of theirs. They know how to go on after "not permitted" (`EPERM`). The filter looks at the numbers of the user's own groups
//! alone: a namespace that a command makes for itself may give a meaning to others, such as 0.

use super::sys;

/// A filter has 4096 instructions at most, two a group.
const MAX_GROUPS: usize = 1000;

/// An instruction of a filter, `seccomp(2)`.
pub(super) type Instruction = libc::sock_filter;

/// Refuses to give files to these groups, for this process and those that it starts. Where a kernel has no filters it answers as before.
pub(super) fn refuse_groups(groups: &[u32]) {
    if let (Some(calls), false) = (CALLS, groups.is_empty()) {
        let _ = sys::install_filter(&program(&calls, &groups[..groups.len().min(MAX_GROUPS)]));
    }
}

/// The calls of an architecture that change a file's group.
struct Calls {
    /// `AUDIT_ARCH_…` of linux/audit.h.
    architecture: u32,
    /// Those with the group for their third argument.
    third: &'static [libc::c_long],
    /// Those with the group for their fourth argument.
    fourth: &'static [libc::c_long],
}

#[cfg(target_arch = "x86_64")]
const CALLS: Option<Calls> = Some(Calls {
    architecture: 0xc000_003e,
    third: &[libc::SYS_chown, libc::SYS_lchown, libc::SYS_fchown],
    fourth: &[libc::SYS_fchownat],
});

#[cfg(target_arch = "aarch64")]
const CALLS: Option<Calls> =
    Some(Calls { architecture: 0xc000_00b7, third: &[libc::SYS_fchown], fourth: &[libc::SYS_fchownat] });

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const CALLS: Option<Calls> = None;

/// Offsets in `struct seccomp_data`. Of an argument the half that counts comes first, on machines with the least byte first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const THIRD: u32 = 16 + 2 * 8;
const FOURTH: u32 = 16 + 3 * 8;

fn load(offset: u32) -> Instruction {
    Instruction { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Goes on behind the next instruction if it is equal, else with the next.
fn skip_if(value: u32) -> Instruction {
    Instruction { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 1, jf: 0, k: value }
}

/// Goes on behind the next instruction if it is not equal, else with the next.
fn skip_unless(value: u32) -> Instruction {
    Instruction { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf: 1, k: value }
}

fn jump(over: u32) -> Instruction {
    Instruction { code: (libc::BPF_JMP | libc::BPF_JA) as u16, jt: 0, jf: 0, k: over }
}

fn answer(answer: u32) -> Instruction {
    Instruction { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: answer }
}

fn program(calls: &Calls, groups: &[u32]) -> Vec<Instruction> {
    let allow = answer(libc::SECCOMP_RET_ALLOW);
    let refuse = answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    let mut program = vec![load(ARCHITECTURE), skip_if(calls.architecture), allow, load(NUMBER)];
    // Each call leads to one of two instructions behind them, with another answer before these for all that is left.
    let all = (calls.third.len() + calls.fourth.len()) as u32;
    let number = |call: &libc::c_long| *call as u32;
    for (index, call) in calls.third.iter().chain(calls.fourth).enumerate() {
        let left = (all - 1 - index as u32) * 2;
        let is_fourth = index >= calls.third.len();
        program.extend([skip_unless(number(call)), jump(left + 1 + if is_fourth { 2 } else { 0 })]);
    }
    program.extend([allow, load(THIRD), jump(1), load(FOURTH)]);
    for group in groups {
        program.extend([skip_unless(*group), refuse]);
    }
    program.push(allow);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel does.
    fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let data = |offset: u32| match offset {
            0 => number,
            4 => architecture,
            at => arguments[(at as usize - 16) / 8] as u32,
        };
        let (mut at, mut value) = (0, 0);
        loop {
            let instruction = program[at];
            at += 1;
            match u32::from(instruction.code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => value = data(instruction.k),
                code if code == libc::BPF_JMP | libc::BPF_JA => at += instruction.k as usize,
                code if code == libc::BPF_RET | libc::BPF_K => return instruction.k,
                _ => at += usize::from(if value == instruction.k { instruction.jt } else { instruction.jf }),
            }
        }
    }

    #[test]
    fn a_filter_refuses_its_groups_and_nothing_else() {
        let calls = Calls { architecture: 7, third: &[92, 94, 93], fourth: &[260] };
        let program = program(&calls, &[1001, 65534]);
        let (allow, refuse) = (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
        let keep = u64::from(u32::MAX);
        for (architecture, number, arguments, expected) in [
            (7, 92, [0, keep, 1001, 0, 0, 0], refuse),
            (7, 94, [0, keep, 65534, 0, 0, 0], refuse),
            (7, 93, [0, keep, (1 << 32) + 1001, 0, 0, 0], refuse),
            (7, 260, [0, 0, keep, 1001, 0, 0], refuse),
            (7, 260, [0, 0, 1001, keep, 0, 0], allow),
            (7, 92, [0, 1001, keep, 1001, 0, 0], allow),
            (7, 92, [0, keep, 0, 0, 0, 0], allow),
            (7, 1, [0, 0, 1001, 1001, 0, 0], allow),
            (8, 92, [0, 0, 1001, 1001, 0, 0], allow),
        ] {
            assert_eq!(run(&program, architecture, number, arguments), expected, "{number} {arguments:?}");
        }
    }
}
