//! Large buffers that are used again: given back to the allocator, they would leave holes that nothing
//! else fits.

use parking_lot::Mutex;

/// Bytes of buffers that are kept for the next piece.
const KEPT_MAX: usize = 8 << 20;

/// Buffers of pieces that were stored.
#[derive(Default)]
pub(super) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty buffer with room for so many bytes.
    pub fn take(&self, len: usize) -> Vec<u8> {
        let mut free = self.free.lock();
        let fitting = free.iter().position(|buffer| buffer.capacity() >= len);
        let buffer = fitting.map(|at| free.swap_remove(at));
        drop(free);
        buffer.unwrap_or_else(|| Vec::with_capacity(len))
    }

    /// Takes a buffer back.
    pub fn give(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut free = self.free.lock();
        let kept: usize = free.iter().map(Vec::capacity).sum();
        if kept + buffer.capacity() <= KEPT_MAX {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_and_large_enough() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(1000);
        buffer.extend_from_slice(&[1; 1000]);
        let place = buffer.as_ptr();
        buffers.give(buffer);
        let larger = buffers.take(2000);
        assert!(larger.as_ptr() != place, "too small");
        let again = buffers.take(500);
        assert!(again.as_ptr() == place && again.is_empty());
        buffers.give(Vec::with_capacity(KEPT_MAX + 1));
        assert!(buffers.free.lock().is_empty(), "too large to keep");
    }
}
