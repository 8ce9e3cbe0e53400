//! `windlass.dev/pause`: the first process of a pod.
//!
//! It does nothing, so that the pod's namespaces have an owner that outlives every container; it reaps what
//! is orphaned when containers share one process namespace; and it ends at SIGTERM or SIGINT.
//!
//! As process 1 it gets no signal that has no handler, but a *blocked* signal is queued for it all the same
//! (`sig_ignored` in the kernel's signal.c). So the signals are blocked and taken one by one with
//! `rt_sigtimedwait`, and no handler is needed.
#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};

const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
/// A signal set has one bit for each signal, counted from 1.
static SIGNALS: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1) | 1 << (SIGCHLD - 1);
const SIGNAL_SET_SIZE: usize = 8;

const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const WAIT4: usize = 61;
    pub const EXIT: usize = 60;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const WAIT4: usize = 260;
    pub const EXIT: usize = 93;
}

#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    // The kernel enters with an aligned stack and no return address; a function expects to be called.
    naked_asm!("call {main}", main = sym main)
}

#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("bl {main}", main = sym main)
}

extern "C" fn main() -> ! {
    let set = &raw const SIGNALS as usize;
    system_call(number::RT_SIGPROCMASK, [SIG_BLOCK, set, 0, SIGNAL_SET_SIZE]);
    loop {
        let signal = system_call(number::RT_SIGTIMEDWAIT, [set, 0, 0, SIGNAL_SET_SIZE]);
        match signal.cast_unsigned() {
            // One signal may stand for several children.
            SIGCHLD => while system_call(number::WAIT4, [usize::MAX, 0, WNOHANG, 0]) > 0 {},
            SIGINT | SIGTERM => {
                system_call(number::EXIT, [0; 4]);
            }
            // EINTR.
            _ => {}
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn system_call(number: usize, arguments: [usize; 4]) -> isize {
    let result;
    // SAFETY: the calls above read at most the constant signal set, and write nothing.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

#[cfg(target_arch = "aarch64")]
fn system_call(number: usize, arguments: [usize; 4]) -> isize {
    let result;
    // SAFETY: the calls above read at most the constant signal set, and write nothing.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") arguments[0] => result,
            in("x1") arguments[1],
            in("x2") arguments[2],
            in("x3") arguments[3],
            options(nostack),
        );
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
