"""Numbers of the system calls the filter names, for x86-64 and aarch64 (the kernel's own tables, `asm/unistd.h`).

A name missing from a machine's table does not exist there: aarch64 has `openat` but never had `open`.
"""

from __future__ import annotations

X86_64: dict[str, int] = {
    # reading, writing and file descriptors
    "read": 0, "write": 1, "readv": 19, "writev": 20, "pread64": 17, "pwrite64": 18, "preadv": 295,
    "pwritev": 296, "preadv2": 327, "pwritev2": 328, "lseek": 8, "close": 3, "close_range": 436, "dup": 32,
    "dup2": 33, "dup3": 292, "pipe": 22, "pipe2": 293, "fsync": 74, "fdatasync": 75, "ftruncate": 77,
    "fallocate": 285, "fadvise64": 221, "fcntl": 72, "ioctl": 16,
    # the file tree
    "open": 2, "openat": 257, "creat": 85, "stat": 4, "lstat": 6, "fstat": 5, "newfstatat": 262,
    "statx": 332, "access": 21, "faccessat": 269, "faccessat2": 439, "getcwd": 79, "chdir": 80,
    "fchdir": 81, "readlink": 89, "readlinkat": 267, "getdents": 78, "getdents64": 217, "mkdir": 83,
    "mkdirat": 258, "rmdir": 84, "unlink": 87, "unlinkat": 263, "rename": 82, "renameat": 264,
    "renameat2": 316, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266, "truncate": 76,
    "umask": 95, "statfs": 137, "fstatfs": 138,
    # file modes and times
    "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "utime": 132, "utimes": 235,
    "futimesat": 261, "utimensat": 280,
    # extended attributes
    "getxattr": 191, "lgetxattr": 192, "fgetxattr": 193, "listxattr": 194, "llistxattr": 195,
    "flistxattr": 196,
    # memory and threads
    "mmap": 9, "munmap": 11, "mprotect": 10, "mremap": 25, "madvise": 28, "brk": 12, "msync": 26,
    "membarrier": 324, "rseq": 334, "set_robust_list": 273, "set_tid_address": 218, "futex": 202,
    "futex_waitv": 449, "clone": 56, "clone3": 435,
    # signals and timers
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "rt_sigpending": 127,
    "rt_sigtimedwait": 128, "rt_sigsuspend": 130, "sigaltstack": 131, "pause": 34, "alarm": 37,
    "setitimer": 38, "getitimer": 36, "timer_create": 222, "timer_settime": 223, "timer_gettime": 224,
    "timer_getoverrun": 225, "timer_delete": 226, "timerfd_create": 283, "timerfd_settime": 286,
    "timerfd_gettime": 287, "signalfd": 282, "signalfd4": 289, "restart_syscall": 219, "kill": 62,
    "tgkill": 234,
    # clocks and scheduling
    "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "nanosleep": 35, "gettimeofday": 96,
    "time": 201, "times": 100, "getrusage": 98, "sched_yield": 24, "sched_getaffinity": 204,
    "sched_getparam": 143, "sched_getscheduler": 145, "sched_get_priority_max": 146,
    "sched_get_priority_min": 147,
    # the process itself
    "getpid": 39, "gettid": 186, "getppid": 110, "getuid": 102, "geteuid": 107, "getgid": 104,
    "getegid": 108, "getresuid": 118, "getresgid": 120, "getgroups": 115, "getpgrp": 111, "getpgid": 121,
    "getsid": 124, "exit": 60, "exit_group": 231, "wait4": 61, "waitid": 247, "uname": 63, "sysinfo": 99,
    "getrlimit": 97, "setrlimit": 160, "prlimit64": 302, "getcpu": 309, "capget": 125, "prctl": 157,
    "getrandom": 318,
    # waiting, and socket pairs
    "poll": 7, "ppoll": 271, "select": 23, "pselect6": 270, "epoll_create": 213, "epoll_create1": 291,
    "epoll_ctl": 233, "epoll_wait": 232, "epoll_pwait": 281, "epoll_pwait2": 441, "eventfd": 284,
    "eventfd2": 290, "socketpair": 53, "sendto": 44, "recvfrom": 45, "recvmsg": 47, "shutdown": 48,
    "getsockname": 51, "getpeername": 52, "getsockopt": 55,
}

AARCH64: dict[str, int] = {
    # reading, writing and file descriptors
    "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68, "preadv": 69,
    "pwritev": 70, "preadv2": 286, "pwritev2": 287, "lseek": 62, "close": 57, "close_range": 436, "dup": 23,
    "dup3": 24, "pipe2": 59, "fsync": 82, "fdatasync": 83, "ftruncate": 46, "fallocate": 47,
    "fadvise64": 223, "fcntl": 25, "ioctl": 29,
    # the file tree
    "openat": 56, "fstat": 80, "newfstatat": 79, "statx": 291, "faccessat": 48, "faccessat2": 439,
    "getcwd": 17, "chdir": 49, "fchdir": 50, "readlinkat": 78, "getdents64": 61, "mkdirat": 34,
    "unlinkat": 35, "renameat": 38, "renameat2": 276, "linkat": 37, "symlinkat": 36, "truncate": 45,
    "umask": 166, "statfs": 43, "fstatfs": 44,
    # file modes and times
    "fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "utimensat": 88,
    # extended attributes
    "getxattr": 8, "lgetxattr": 9, "fgetxattr": 10, "listxattr": 11, "llistxattr": 12, "flistxattr": 13,
    # memory and threads
    "mmap": 222, "munmap": 215, "mprotect": 226, "mremap": 216, "madvise": 233, "brk": 214, "msync": 227,
    "membarrier": 283, "rseq": 293, "set_robust_list": 99, "set_tid_address": 96, "futex": 98,
    "futex_waitv": 449, "clone": 220, "clone3": 435,
    # signals and timers
    "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "rt_sigpending": 136,
    "rt_sigtimedwait": 137, "rt_sigsuspend": 133, "sigaltstack": 132, "setitimer": 103, "getitimer": 102,
    "timer_create": 107, "timer_settime": 110, "timer_gettime": 108, "timer_getoverrun": 109,
    "timer_delete": 111, "timerfd_create": 85, "timerfd_settime": 86, "timerfd_gettime": 87,
    "signalfd4": 74, "restart_syscall": 128, "kill": 129, "tgkill": 131,
    # clocks and scheduling
    "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "nanosleep": 101,
    "gettimeofday": 169, "times": 153, "getrusage": 165, "sched_yield": 124, "sched_getaffinity": 123,
    "sched_getparam": 121, "sched_getscheduler": 120, "sched_get_priority_max": 125,
    "sched_get_priority_min": 126,
    # the process itself
    "getpid": 172, "gettid": 178, "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176,
    "getegid": 177, "getresuid": 148, "getresgid": 150, "getgroups": 158, "getpgid": 155, "getsid": 156,
    "exit": 93, "exit_group": 94, "wait4": 260, "waitid": 95, "uname": 160, "sysinfo": 179,
    "getrlimit": 163, "setrlimit": 164, "prlimit64": 261, "getcpu": 168, "capget": 90, "prctl": 167,
    "getrandom": 278,
    # waiting, and socket pairs
    "ppoll": 73, "pselect6": 72, "epoll_create1": 20, "epoll_ctl": 21, "epoll_pwait": 22,
    "epoll_pwait2": 441, "eventfd2": 19, "socketpair": 199, "sendto": 206, "recvfrom": 207, "recvmsg": 212,
    "shutdown": 210, "getsockname": 204, "getpeername": 205, "getsockopt": 209,
}
