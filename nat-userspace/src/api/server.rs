//! The daemon's end of the control socket: a thread a client, and no client can do it harm.

use std::fs;
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::Value;
use serde_json::value::RawValue;

use super::peer;
use super::protocol::{Envelope, Line};
use super::{ApiError, Request, Row, VERSION};
use crate::seats::Seats;

/// Who carries out requests; called from several threads at once.
pub trait Handler: Send + Sync {
    /// Carries out one request. Rows go to `reply` as they are found; what is returned ends the
    /// answer. [`Reply::row`] blocks while the client is slow: hold no lock over it.
    fn handle(&self, request: Request, reply: &mut dyn Reply) -> Result<Value, ApiError>;
}

/// Where the rows of an answer go.
pub trait Reply {
    /// Sends a row. After an error the client is gone: end the listing.
    fn row(&mut self, row: Row<'_>) -> io::Result<()>;

    /// Sends the rows there are at once, though more may follow. Whether the client is still there.
    fn flush(&mut self) -> io::Result<bool>;
}

/// Why the control socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another process answers there.
    #[error("listen on {}: another daemon answers there", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Something is there that is no socket.
    #[error("listen on {}: it exists and is not a socket", path.display())]
    NoSocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ServerError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Taken { .. } => {
                "`natgw status` shows it; a second one needs its own [control] socket and bpffs"
            }
            Self::NoSocket { .. } => "remove the file, or name another path in [control] socket",
            Self::Io { .. } => "run as root, or name a path that can be written to in [control] socket",
        }
    }
}

/// A control socket that is being served; gone when dropped.
pub struct Server {
    listener: Arc<UnixListener>,
    path: PathBuf,
    /// Device and inode of the socket: only this one is removed.
    identity: (u64, u64),
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path`, which its owner and group may connect to, and serves clients from
    /// threads of its own. A socket that a dead daemon left is replaced.
    pub fn bind(path: &Path, handler: Arc<dyn Handler>) -> Result<Self, ServerError> {
        let io = |what| move |source| ServerError::Io { what, path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io("create the directory of"))?;
        }
        Self::make_way(path)?;
        let listener = Arc::new(listen(path).map_err(io("listen on"))?);
        let metadata = fs::metadata(path).map_err(io("look at"))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let acceptor = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn({
                let (listener, stopping) = (Arc::clone(&listener), Arc::clone(&stopping));
                let path = path.to_owned();
                move || accept(&listener, &path, &handler, &stopping)
            })
            .map_err(io("start a thread for"))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity: (metadata.dev(), metadata.ino()),
            stopping,
            acceptor: Some(acceptor),
        })
    }
}

impl Server {
    /// Errs where a daemon answers at `path`: to be asked before anything of it is touched. Removes what one that is no
    /// more has left there.
    pub fn make_way(path: &Path) -> Result<(), ServerError> {
        clear(path)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Shutting a listening socket down wakes the thread that waits in accept(2). Should it
        // fail, the thread stays: better than to hang here.
        if rustix::net::shutdown(&*self.listener, Shutdown::Both).is_ok()
            && let Some(acceptor) = self.acceptor.take()
        {
            let _ = acceptor.join();
        }
        let ours =
            fs::metadata(&self.path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes what a daemon that is no more has left at `path`.
fn clear(path: &Path) -> Result<(), ServerError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(ServerError::NoSocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| ServerError::Io {
                what: "remove the stale socket",
                path: path.to_owned(),
                source,
            })
        }
        _ => Err(ServerError::Taken { path: path.to_owned() }),
    }
}

/// As `UnixListener::bind`, but nobody else can connect at any moment: the socket's inode gets
/// the mode that its file descriptor has when it is bound.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // The umask may have taken the group's bits away.
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn accept(listener: &UnixListener, path: &Path, handler: &Arc<dyn Handler>, stopping: &AtomicBool) {
    let seats = Seats::new("control", MOST_CLIENTS);
    while !stopping.load(Ordering::Relaxed) {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !stopping.load(Ordering::Relaxed) {
                    // Out of descriptors, most likely: clients that end give some back.
                    tracing::warn!("control socket: accept a client: {error}");
                    std::thread::sleep(PAUSE_AFTER_ERROR);
                }
                continue;
            }
        };
        if let Err(stranger) = peer::admit(&stream, path) {
            tracing::warn!("control socket: {}", stranger.message);
            refuse(&stream, stranger);
            continue;
        }
        if seats.are_taken() {
            let error = ApiError::new(
                format!("the daemon serves {MOST_CLIENTS} clients already"),
                "end a listing that nobody reads, or try again",
            );
            refuse(&stream, error);
            continue;
        }
        let handler = Arc::clone(handler);
        seats.serve(move || serve(&stream, &*handler));
    }
}

/// Turns a client away without waiting for it.
fn refuse(mut stream: &UnixStream, error: ApiError) {
    let _ = stream.set_nonblocking(true);
    if let Ok(text) = serde_json::to_string(&Line::<(), ()>::Error(error)) {
        let _ = writeln!(stream, "{text}");
    }
}

fn serve(stream: &UnixStream, handler: &dyn Handler) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut answer = Answer { stream: BufWriter::with_capacity(BUFFER, stream) };
    let line = match read_line(stream)?.and_then(|line| understand(&line)) {
        Ok(request) => match handler.handle(request, &mut answer) {
            Ok(done) => Line::Done(done),
            Err(error) => Line::Error(error),
        },
        Err(error) => Line::Error(error),
    };
    answer.line(&line)?;
    answer.stream.flush()
}

/// Reads up to the end of a line: in bounded time however slowly it comes, and in bounded space.
fn read_line(mut stream: &UnixStream) -> io::Result<Result<Vec<u8>, ApiError>> {
    let deadline = Instant::now() + READ_TIMEOUT;
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err(ApiError::new(
                format!("no request came within {} s", READ_TIMEOUT.as_secs()),
                "send one line of JSON and read the answer",
            )));
        }
        stream.set_read_timeout(Some(left))?;
        let length = match stream.read(&mut chunk) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let end = chunk[..length].iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&chunk[..end.unwrap_or(length)]);
        if line.len() > LONGEST_LINE {
            return Ok(Err(ApiError::new(
                format!("the request has more than {LONGEST_LINE} bytes"),
                "send one line of JSON",
            )));
        }
        if end.is_some() || length == 0 {
            return Ok(Ok(line));
        }
    }
}

fn understand(line: &[u8]) -> Result<Request, ApiError> {
    let bad = |error: serde_json::Error| {
        ApiError::new(
            format!("the request is not understood: {error}"),
            format!("such as {{\"version\":{VERSION},\"request\":{{\"verb\":\"status\"}}}}"),
        )
    };
    // The version first: a request of another version may look different.
    let envelope: Envelope<&RawValue> = serde_json::from_slice(line).map_err(bad)?;
    if envelope.version != VERSION {
        return Err(ApiError::new(
            format!("the request is of protocol version {}, the daemon's is {VERSION}", envelope.version),
            "use the `natgw` command of the daemon's version, or restart the daemon",
        ));
    }
    let request = serde_json::from_str(envelope.request.get()).map_err(bad)?;
    match request {
        Request::SessionDelete { filter } if filter.is_empty() => Err(ApiError::new(
            "delete sessions: no filter is given",
            "say which, such as inside 10.1.1.7; session-flush deletes all",
        )),
        request => Ok(request),
    }
}

/// The answer to one client.
struct Answer<'stream> {
    stream: BufWriter<&'stream UnixStream>,
}

impl Answer<'_> {
    fn line(&mut self, line: &Line<Row<'_>, Value>) -> io::Result<()> {
        serde_json::to_writer(&mut self.stream, line)?;
        self.stream.write_all(b"\n")
    }
}

impl Reply for Answer<'_> {
    fn row(&mut self, row: Row<'_>) -> io::Result<()> {
        self.line(&Line::Row(row))
    }

    fn flush(&mut self) -> io::Result<bool> {
        self.stream.flush()?;
        // Whoever has closed the connection is read from at its end.
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(self.stream.get_ref(), &mut [0_u8][..], flags) {
            Ok((_, 0)) => Ok(false),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

const SOCKET_MODE: u32 = 0o660;

/// Clients served at a time.
pub(super) const MOST_CLIENTS: usize = 32;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 64;

/// A request's length, in bytes.
pub(super) const LONGEST_LINE: usize = 64 * 1024;

/// How much of an answer is sent at a time, in bytes.
const BUFFER: usize = 64 * 1024;

/// How long a client may take to send its request.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client may leave its answer unread: a pager that is being read is no fault.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);
