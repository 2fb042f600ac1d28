//! CPU and I/O priority of threads, set and read back.
//!
//! For I/O this runs `ionice` of util-linux: no maintained crate offers `ioprio_set` without unsafe code, which is
//! forbidden here. It is run when limits are applied, not while work goes on.

use holdfast_core::IoClass;
use rustix::{io::Errno, process, thread::Pid};
use std::{path::Path, process::Command};

/// Where distributions have it; the search path is not trusted with what a root process runs.
const IONICE: [&str; 2] = ["/usr/bin/ionice", "/bin/ionice"];

/// A thread's nice value.
pub(super) fn nice_of(thread: Pid) -> Result<i32, String> {
    process::getpriority_process(Some(thread)).map_err(|errno| format!("a thread's nice value: {errno}"))
}

/// Gives a thread another nice value, and reads it back.
pub(super) fn set_nice(thread: Pid, nice: i32) -> Result<(), String> {
    let before = nice_of(thread)?;
    if before == nice {
        return Ok(());
    }
    process::setpriority_process(Some(thread), nice).map_err(|errno| nice_refused(before, nice, errno))?;
    match nice_of(thread)? {
        found if found == nice => Ok(()),
        found => Err(format!("asked for nice {nice}, but the kernel says {found}")),
    }
}

fn nice_refused(from: i32, to: i32, errno: Errno) -> String {
    if matches!(errno, Errno::ACCESS | Errno::PERM) && to < from {
        format!(
            "running threads stay at nice {from}: raising them to nice {to} needs CAP_SYS_NICE; those of the next \
             run begin as the agent was started"
        )
    } else {
        format!("nice {to} was refused: {errno}")
    }
}

/// I/O classes of threads, in their order.
pub(super) fn io_of(threads: &[Pid]) -> Result<Vec<IoClass>, String> {
    let said = ionice(&[], threads)?;
    let classes: Vec<IoClass> = said.lines().map(class_of).collect();
    if classes.len() == threads.len() {
        Ok(classes)
    } else {
        Err(format!(
            "ionice tells {} classes of {} threads",
            classes.len(),
            threads.len()
        ))
    }
}

/// Gives threads another I/O class, and reads it back; returns what they have then.
pub(super) fn set_io(threads: &[Pid], class: IoClass) -> Result<Vec<IoClass>, String> {
    let priority = class.priority().unwrap_or(0).to_string();
    let arguments: &[&str] = match class {
        IoClass::None => &["-c", "0"],
        IoClass::BestEffort(_) => &["-c", "2", "-n", &priority],
        IoClass::Idle => &["-c", "3"],
    };
    ionice(arguments, threads)?;
    let found = io_of(threads)?;
    match found.iter().find(|found| !is_met_by(class, **found)) {
        None => Ok(found),
        Some(other) => Err(format!(
            "asked for the I/O class {}, but the kernel says {}",
            shown(class),
            shown(*other)
        )),
    }
}

/// Whether a thread that was asked to be of a class is. Kernels before 5.18 show a thread without one as the middle
/// of best-effort.
fn is_met_by(asked: IoClass, found: IoClass) -> bool {
    found == asked || (asked == IoClass::None && found == IoClass::BestEffort(4))
}

fn shown(class: IoClass) -> String {
    match class.priority() {
        Some(priority) => format!("{} {priority}", class.as_str()),
        None => class.as_str().into(),
    }
}

/// One line of ionice, such as `best-effort: prio 6`.
fn class_of(line: &str) -> IoClass {
    match line.split_once(": prio ") {
        Some(("best-effort", priority)) => IoClass::BestEffort(priority.trim().parse().unwrap_or(4)),
        _ if line.trim() == "idle" => IoClass::Idle,
        // We never ask for the real-time class, and an agent that was started in it keeps it.
        _ => IoClass::None,
    }
}

fn ionice(arguments: &[&str], threads: &[Pid]) -> Result<String, String> {
    let program = IONICE.iter().find(|path| Path::new(path).exists());
    let program = program.ok_or("I/O classes need ionice of util-linux, which is not installed")?;
    let output = Command::new(program)
        .env_clear()
        .args(arguments)
        .arg("-p")
        .args(threads.iter().map(|thread| thread.as_raw_pid().to_string()))
        .output()
        .map_err(|error| format!("run {program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("the I/O class was refused: {}", said.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::gettid;

    #[test]
    fn a_thread_gets_what_is_asked_and_says_so() {
        // In a thread of its own: without privileges there is no way back.
        let worker = std::thread::spawn(|| {
            let me = gettid();
            assert_eq!(set_nice(me, 10), Ok(()));
            assert_eq!(nice_of(me), Ok(10));
            for class in [IoClass::Idle, IoClass::BestEffort(7), IoClass::BestEffort(0)] {
                assert_eq!(set_io(&[me], class), Ok(vec![class]));
                assert_eq!(io_of(&[me, me]), Ok(vec![class; 2]));
            }
            assert!(set_io(&[me], IoClass::None).is_ok());
        });
        worker.join().unwrap();
    }

    #[test]
    fn a_refusal_says_what_is_missing() {
        let text = nice_refused(10, 0, Errno::ACCESS);
        assert!(
            text.contains("CAP_SYS_NICE") && text.contains("nice 10"),
            "{text}"
        );
        assert!(nice_refused(0, 5, Errno::INVAL).contains("nice 5"));
        let nobody = Pid::from_raw(i32::MAX).unwrap();
        assert!(set_nice(nobody, 5).is_err());
        assert!(set_io(&[nobody], IoClass::Idle).is_err());
    }
}
