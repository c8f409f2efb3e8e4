//! One instance at a time, and the next one as soon as the last is dead.

use std::thread;

use rustix::process::Signal;

use crate::support::program::{Log, Program, State};
use crate::support::{Site, wait_until};

const RACES: usize = 100;
/// Races side by side: the one that loses tries for a second.
const AT_ONCE: usize = 10;
const RESTARTS: usize = 50;

const ARGS: &[&str] = &["--stability-seconds", "0.02"];

#[test]
fn of_two_instances_started_at_once_exactly_one_runs_a_hundred_times() {
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| (0..RACES / AT_ONCE).for_each(|_| race()));
        }
    });
    println!("{RACES} races");
}

fn race() {
    let site = Site::new();
    site.put("a.csv", "a");
    let logs = ["one.log", "two.log"].map(|name| Log(site.root.join(name)));
    let mut programs = logs
        .each_ref()
        .map(|log| Program::start(site.run(ARGS), &log.0));
    let mut loser = None;
    wait_until("one of two gives up", || {
        loser = programs.iter_mut().position(|program| program.has_ended());
        loser.is_some()
    });
    let loser = loser.expect("one has ended");
    let ended = programs[loser].wait();
    let code = |state| match state {
        State::Ended(status) => status.code(),
        State::Stopped => None,
    };
    assert_eq!(code(ended), Some(75), "{}", logs[loser].tail());
    let winner = &mut programs[1 - loser];
    wait_until("the other one has taken the file", || {
        assert!(!winner.has_ended(), "both ended");
        site.manifest_so_far().len() == 1
    });
    assert_eq!(logs[loser].events("started").len(), 0, "both ran");
    winner.send(Signal::TERM);
    assert_eq!(code(winner.wait()), Some(0));
    site.assert_sound();
}

/// A ring that is torn down can hold the locks of a killed process for some milliseconds.
#[test]
fn a_start_right_after_a_kill_works() {
    let site = Site::new();
    let log = Log(site.root.join("ringest.log"));
    for restart in 0..RESTARTS {
        let mut killed = Program::start(site.run(ARGS), &log.0);
        wait_until("it runs", || {
            assert!(!killed.has_ended(), "{}", log.tail());
            log.events("started").len() > 2 * restart
        });
        for i in 0..5 {
            site.put(format!("{restart}-{i}.csv"), format!("{restart} {i}"));
        }
        killed.send(Signal::KILL);
        let mut next = Program::start(site.run(&[ARGS, &["--once"]].concat()), &log.0);
        match next.wait() {
            State::Ended(status) => assert_eq!(status.code(), Some(0), "{}", log.tail()),
            State::Stopped => panic!("it stopped"),
        }
        killed.kill(false);
    }
    assert_eq!(site.manifest().len(), 5 * RESTARTS);
    site.assert_sound();
}
