//! What natgw tells the supervisor that has started it (`sd_notify(3)`), here the test.

use std::{
    fs::{self, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, OpenOptionsExt as _},
        net::UnixDatagram,
    },
    path::Path,
    time::{Duration, Instant},
};

use nat_tests::{Gateway, Lab, gateway};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat},
    process::Signal,
};

/// How long a message may take: long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The supervisor's end.
struct Supervisor {
    socket: UnixDatagram,
}

impl Supervisor {
    fn listen(at: &Path) -> Self {
        let socket = UnixDatagram::bind(at).expect("listen for notifications");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("set a timeout");
        Self { socket }
    }

    fn next(&self) -> Option<String> {
        let mut message = [0; 1024];
        let length = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..length]).into_owned())
    }

    /// The next message with this line, within reason.
    fn hears(&self, line: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(message) = self.next().filter(|message| message.lines().any(|said| said == line)) {
                return message;
            }
        }
        panic!("no {line} within {PATIENCE:?}");
    }

    fn forget(&self) {
        while self.next().is_some() {}
    }
}

#[test]
fn the_supervisor_hears_how_far_it_is() {
    let lab = Lab::standard();
    let mut gateway = Gateway::prepare(&lab, gateway::STANDARD);
    let path = gateway.configuration().with_file_name("notify");
    let supervisor = Supervisor::listen(&path);
    gateway.restart_with(&[("NOTIFY_SOCKET", &path)]);
    let ready = supervisor.hears("READY=1");
    assert!(ready.contains("STATUS=2 interfaces, 1 snat, 0 static, 0 forward, 0 service\n"), "{ready}");
    // Without WATCHDOG_USEC nobody wants signs of life.
    assert_eq!(supervisor.next(), None);
    gateway.configure(&format!("{}\n[timeouts]\nudp = \"3m\"\n", gateway::STANDARD));
    gateway.signal(Signal::HUP);
    let reloading = supervisor.hears("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    supervisor.hears("READY=1");
    gateway.configure(&gateway::STANDARD.replace("masquerade", "masquerad"));
    gateway.signal(Signal::HUP);
    supervisor.hears("RELOADING=1");
    let refused = supervisor.hears("READY=1");
    assert!(refused.contains("STATUS=the file was refused"), "{refused}");
    gateway.signal(Signal::TERM);
    supervisor.hears("STOPPING=1");
}

/// The worker hangs in a write to a log that nobody reads, while the threads of the control socket live on.
#[test]
fn a_worker_that_hangs_gives_no_sign_of_life() {
    let lab = Lab::standard();
    let mut gateway = Gateway::prepare(&lab, gateway::STANDARD);
    let path = gateway.configuration().with_file_name("notify");
    let supervisor = Supervisor::listen(&path);
    let log = gateway.configuration().with_file_name("log");
    mknodat(CWD, &log, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("make a pipe of the log");
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("flags fit");
    let mut reader =
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(&log).expect("open the pipe");
    gateway.restart_with(&[("NOTIFY_SOCKET", &path), ("WATCHDOG_USEC", Path::new("900000"))]);
    // Whatever becomes of this test, nobody waits for the pipe's end.
    fs::remove_file(&log).expect("remove the pipe's name");
    supervisor.hears("READY=1");
    for _ in 0..5 {
        supervisor.hears("WATCHDOG=1");
    }
    // As full as it gets.
    while reader.write(&[b'.'; 4096]).or_else(|_| reader.write(b".")).is_ok() {}
    gateway.signal(Signal::HUP);
    supervisor.hears("RELOADING=1");
    supervisor.forget();
    let silent = Instant::now();
    while silent.elapsed() < Duration::from_millis(1800) {
        assert_eq!(supervisor.next(), None, "it hangs, and says that it lives");
    }
    // Somebody reads it again: the hang is over.
    let mut unread = [0; 8192];
    while reader.read(&mut unread).is_ok_and(|count| count > 0) {}
    supervisor.hears("WATCHDOG=1");
    supervisor.hears("WATCHDOG=1");
    gateway.text(&["status"]);
    gateway.stop();
}

/// The journal's stream is a file here: lines have their level before them, and no second clock.
#[test]
fn the_journal_gets_levels_and_no_second_clock() {
    let lab = Lab::standard();
    let mut gateway = Gateway::prepare(&lab, gateway::STANDARD);
    let log = gateway.configuration().with_file_name("log");
    fs::write(&log, "").unwrap();
    let file = fs::metadata(&log).unwrap();
    for (stream, is_journal) in [(file.ino(), true), (file.ino() + 1, false)] {
        fs::write(&log, "").unwrap();
        let stream = format!("{}:{stream}", file.dev());
        gateway.restart_with(&[("JOURNAL_STREAM", Path::new(&stream))]);
        gateway.configure("[[interface]]");
        assert!(!gateway.output(&["reload"]).status.success());
        gateway.configure(gateway::STANDARD);
        gateway.stop();
        let said = gateway.log();
        let lines = ["<4>natgw::daemon: ip_forward is 0", "<6>natgw::daemon: natgw is ready version="];
        for line in lines {
            assert_eq!(said.contains(line), is_journal, "{said}");
        }
        // Also those of a fault that takes several.
        assert!(said.contains("the old configuration stays"), "{said}");
        assert!(said.lines().all(|line| line.starts_with('<') == is_journal), "{said}");
    }
}
