//! Reads from a socket in large pieces. rustls asks for 4 KiB at a time: as many calls of the kernel would take
//! longer than the decryption of what they bring.

use bytes::{Buf as _, BytesMut};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Most bytes that are read at once.
const AHEAD: usize = 128 * 1024;

/// A socket with what was read ahead of it. Only while there is something does it hold a buffer: a controller has
/// thousands of connections, most of them silent.
#[derive(Debug)]
pub(crate) struct ReadAhead<S> {
    socket: S,
    ahead: BytesMut,
}

impl<S> ReadAhead<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self {
            socket,
            ahead: BytesMut::new(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, ahead } = self.get_mut();
        if ahead.is_empty() {
            ahead.reserve(AHEAD);
            let read = poll_read_buf(Pin::new(socket), cx, ahead);
            if ahead.is_empty() {
                *ahead = BytesMut::new();
            }
            ready!(read)?;
        }
        let len = ahead.len().min(buf.remaining());
        buf.put_slice(&ahead[..len]);
        ahead.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn run<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(work)
    }

    proptest! {
        #[test]
        fn what_was_sent_comes_out_in_pieces_of_any_size(
            sent in proptest::collection::vec(any::<u8>(), 0..5000),
            pipe in 1_usize..2000,
            asked in proptest::collection::vec(1_usize..700, 1..20),
        ) {
            let got = run(async {
                let (mut here, there) = tokio::io::duplex(pipe);
                let content = sent.clone();
                let send = async move { here.write_all(&content).await.unwrap() };
                let receive = async {
                    let mut reading = ReadAhead::new(there);
                    let (mut got, mut sizes) = (Vec::new(), asked.iter().cycle());
                    loop {
                        let mut piece = vec![0; *sizes.next().unwrap()];
                        let len = reading.read(&mut piece).await.unwrap();
                        if len == 0 {
                            break got;
                        }
                        got.extend_from_slice(&piece[..len]);
                    }
                };
                tokio::join!(send, receive).1
            });
            prop_assert_eq!(got, sent);
        }
    }

    #[test]
    fn many_small_reads_are_one_of_the_socket_and_silence_holds_nothing() {
        run(async {
            let (mut here, there) = tokio::io::duplex(AHEAD);
            let mut reading = ReadAhead::new(there);
            here.write_all(&[7; 10_000]).await.unwrap();
            let mut piece = [0; 4096];
            assert_eq!(reading.read(&mut piece).await.unwrap(), 4096);
            assert_eq!(reading.ahead.len(), 10_000 - 4096);
            reading.read_exact(&mut [0; 10_000 - 4096]).await.unwrap();
            let silence = futures::poll!(std::pin::pin!(reading.read(&mut piece)));
            assert!(silence.is_pending());
            assert_eq!(reading.ahead.capacity(), 0);
            here.write_all(b"again").await.unwrap();
            assert_eq!(reading.read(&mut piece).await.unwrap(), 5);
        });
    }
}
