//! The command's end of the control socket.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::protocol::{Envelope, Line, RawLine};
use super::{ApiError, Request, VERSION};

/// Why a request had no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody could be reached.
    #[error("{}", explain_connect(path, source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("talk to the daemon at {}: {source}", path.display())]
    Talk {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The answer makes no sense.
    #[error("the answer of the daemon at {} is not understood: {why}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The daemon said no.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// Where the rows go, which is standard output for the command, takes no more.
    #[error("write to standard output: {0}")]
    Output(io::Error),
}

impl ClientError {
    /// What to do about it.
    pub fn hint(&self) -> &str {
        match self {
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    "is `natgw run` running? --socket PATH or NATGW_SOCKET names another socket"
                }
                io::ErrorKind::PermissionDenied => "run as root, or as a member of the socket's group",
                _ => "--socket PATH or NATGW_SOCKET names the daemon's socket",
            },
            Self::Talk { .. } => "see the daemon's log for what it is doing",
            Self::Answer { .. } => "use the `natgw` command of the daemon's version",
            Self::Refused(error) => &error.hint,
            Self::Output(_) => "see whether the file or device has room",
        }
    }
}

fn explain_connect(path: &Path, source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no daemon at {}", path.display())
        }
        _ => format!("connect to the daemon at {}: {source}", path.display()),
    }
}

/// A connection to the daemon, good for one request.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
}

impl Client {
    /// Connects to the daemon that serves `path`.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self { stream, path: path.to_owned() }),
            Err(source) => Err(ClientError::Connect { path: path.to_owned(), source }),
        }
    }

    /// Sends a request, hands each row to `row` as it comes, and returns what ends the answer.
    /// An error of `row` ends the request, as [`ClientError::Output`].
    pub fn request<R: DeserializeOwned, D: DeserializeOwned>(
        self,
        request: &Request,
        mut row: impl FnMut(R) -> io::Result<()>,
    ) -> Result<D, ClientError> {
        let Self { stream, path } = self;
        let talk = |source: io::Error| ClientError::Talk { path: path.clone(), source: in_words(source) };
        let answer = |why: String| ClientError::Answer { path: path.clone(), why };

        // Nothing may happen for long where nothing happens.
        let patience = (!request.is_endless()).then_some(PATIENCE);
        stream.set_read_timeout(patience).map_err(talk)?;
        let mut line = serde_json::to_string(&Envelope { version: VERSION, request })
            .map_err(|error| talk(error.into()))?;
        line.push('\n');
        // A daemon that has no seat left answers and closes without reading.
        match (&stream).write_all(line.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(talk(error)),
            _ => {}
        }
        let mut lines = BufReader::with_capacity(BUFFER, stream);
        loop {
            line.clear();
            if lines.read_line(&mut line).map_err(talk)? == 0 {
                return Err(talk(io::ErrorKind::UnexpectedEof.into()));
            }
            match serde_json::from_str::<RawLine<'_>>(&line).map_err(|error| answer(error.to_string()))? {
                Line::Row(raw) => {
                    let value = serde_json::from_str(raw.get()).map_err(|error| answer(error.to_string()))?;
                    row(value).map_err(ClientError::Output)?;
                }
                Line::Done(raw) => {
                    return serde_json::from_str(raw.get()).map_err(|error| answer(error.to_string()));
                }
                Line::Error(error) => return Err(error.into()),
            }
        }
    }
}

/// What the system's word for an error means here.
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => {
            let text = format!("no answer for {} s", PATIENCE.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, text)
        }
        io::ErrorKind::UnexpectedEof => {
            io::Error::new(error.kind(), "it closed the connection in mid-answer")
        }
        _ => error,
    }
}

/// How long the daemon may be silent before or within an answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// How much of an answer is read at a time, in bytes.
const BUFFER: usize = 64 * 1024;
