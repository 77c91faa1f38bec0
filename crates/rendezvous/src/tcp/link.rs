//! Hosts that fall silent.
//!
//! A process that ends closes its connections. A host that loses power, or a link that is cut, closes
//! nothing: the other end would keep a dead connection, or wait on it, for ever. So the kernel asks
//! the other host now and then whether it is there, and gives up the connection if it does not answer.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// Gives the connection up when the other host has not answered for `silence`, whether or not there
/// was anything to send. Seconds count, and it takes two at least.
pub(super) fn give_up_after<'a>(
    socket: impl Into<SockRef<'a>>,
    silence: Duration,
) -> io::Result<()> {
    let socket = socket.into();
    // The first question after a third of the time, then one every twelfth of it.
    let second = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new().with_time((silence / 3).max(second));
    #[cfg(not(any(target_os = "openbsd", target_os = "haiku")))]
    let keepalive = keepalive.with_interval((silence / 12).max(second));
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    let keepalive = keepalive.with_retries(8);
    socket.set_tcp_keepalive(&keepalive)?;
    // For what was sent and is not acknowledged no such questions are asked. On Linux this is the
    // limit of both.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(silence.max(2 * second)))?;
    Ok(())
}
