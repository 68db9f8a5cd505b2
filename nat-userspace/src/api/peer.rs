//! Who is at the other end of the control socket: asked of the kernel, whatever mode the socket has come to have.

#![expect(unsafe_code, reason = "no crate wraps SO_PEERGROUPS")]

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::sockopt::socket_peercred;

use super::ApiError;

/// Root, who the daemon runs as, the owner of the socket at `path`, and members of its group are served.
pub(super) fn admit(stream: &UnixStream, path: &Path) -> Result<(), ApiError> {
    let unknown = |error: io::Error| {
        ApiError::new(format!("who is connected cannot be told: {error}"), "connect by the control socket")
    };
    let peer = socket_peercred(stream).map_err(|error| unknown(error.into()))?;
    let (user, group) = (peer.uid.as_raw(), peer.gid.as_raw());
    if user == 0 || user == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let socket = std::fs::metadata(path).map_err(unknown)?;
    let is_member = group == socket.gid() || groups(stream).map_err(unknown)?.contains(&socket.gid());
    if user == socket.uid() || is_member {
        return Ok(());
    }
    Err(ApiError::new(
        format!("user {user} is not allowed to use {}", path.display()),
        format!("run it as root, or as a member of group {}, which the socket belongs to", socket.gid()),
    ))
}

/// The supplementary groups that the peer had when it connected (`SO_PEERGROUPS`).
fn groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    // As many as a process can have (NGROUPS_MAX).
    let mut groups = vec![0_u32; 65_536];
    let mut length =
        libc::socklen_t::try_from(size_of_val(groups.as_slice())).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: the pointer and the length are those of `groups`, and the descriptor lives as long as `stream`.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(length as usize / size_of::<u32>());
    Ok(groups)
}
