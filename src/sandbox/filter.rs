//! Makes chgrp(2) to a group that the user is in fail with EPERM instead of EINVAL.
//!
//! An ordinary user's namespace has one group. For every other number the kernel returns EINVAL, which programs take for an
//! error of their own. After EPERM they continue. The filter concerns only the numbers of the user's own groups: a namespace
//! that a command makes may give a meaning to others, such as 0.

use super::sys;

/// The most groups that a filter checks. A filter has at most 4096 instructions, and each group takes two.
const MAX_GROUPS: usize = 1000;

/// An instruction of a filter, `seccomp(2)`.
pub(super) type Instruction = libc::sock_filter;

/// Refuses to give files to these groups, for this process and those that it starts. Does nothing on a kernel without filters.
pub(super) fn refuse_groups(groups: &[u32]) {
    if let (Some(calls), false) = (CALLS, groups.is_empty()) {
        let _ = sys::install_filter(&program(&calls, &groups[..groups.len().min(MAX_GROUPS)]));
    }
}

/// The calls of an architecture that change a file's group.
struct Calls {
    /// `AUDIT_ARCH_…` of linux/audit.h.
    architecture: u32,
    /// Calls whose third argument is the group.
    third: &'static [libc::c_long],
    /// Calls whose fourth argument is the group.
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

/// Offsets in `struct seccomp_data`. The lower half of an argument comes first, since these machines are little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const THIRD: u32 = 16 + 2 * 8;
const FOURTH: u32 = 16 + 3 * 8;

fn load(offset: u32) -> Instruction {
    Instruction { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Skips the next instruction if the value is equal.
fn skip_if(value: u32) -> Instruction {
    Instruction { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 1, jf: 0, k: value }
}

/// Skips the next instruction unless the value is equal.
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
    // Each call jumps to one of two instructions after the list. Before these, all other calls are allowed.
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
