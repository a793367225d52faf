//! Progress within one file: bytes are reported while the file is read or written.

use std::io::{self, Read, Write};

/// Reports the bytes of one file: each once, however often the file is read, and at most as many as were
/// announced.
pub(crate) struct Meter<'a> {
    announced: u64,
    reported: u64,
    report: &'a dyn Fn(u64),
}

impl<'a> Meter<'a> {
    /// Starts a file that adds `announced` bytes to the total.
    pub(crate) fn new(announced: u64, report: &'a dyn Fn(u64)) -> Self {
        Self { announced, reported: 0, report }
    }

    /// Reports the bytes up to a position. A position that was passed before reports nothing.
    fn reach(&mut self, position: u64) {
        let position = position.min(self.announced);
        if position > self.reported {
            (self.report)(position - self.reported);
            self.reported = position;
        }
    }

    /// Reports the rest: the file may have become shorter, or part of it was not read.
    pub(crate) fn finish(mut self) {
        self.reach(self.announced);
    }

    /// Reports the bytes that pass through a reader or writer that starts at the beginning of the file.
    pub(crate) fn metered<T>(&mut self, inner: T) -> Metered<'_, 'a, T> {
        Metered { inner, position: 0, meter: self }
    }
}

/// A reader or writer whose bytes are reported.
pub(crate) struct Metered<'m, 'a, T> {
    inner: T,
    position: u64,
    meter: &'m mut Meter<'a>,
}

impl<T> Metered<'_, '_, T> {
    fn passed(&mut self, bytes: usize) {
        self.position += bytes as u64;
        self.meter.reach(self.position);
    }
}

impl<T: Read> Read for Metered<'_, '_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.passed(bytes);
        Ok(bytes)
    }
}

impl<T: Write> Write for Metered<'_, '_, T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let bytes = self.inner.write(buffer)?;
        self.passed(bytes);
        Ok(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// The reports for a file of `announced` bytes that is read with each of these lengths in turn.
    fn reported(announced: u64, lengths: &[usize]) -> Vec<u64> {
        let all = RefCell::new(Vec::new());
        let report = |bytes| all.borrow_mut().push(bytes);
        let mut meter = Meter::new(announced, &report);
        for length in lengths {
            let content = vec![1; *length];
            let mut reader = meter.metered(content.as_slice());
            while reader.read(&mut [0; 4]).unwrap() > 0 {}
        }
        meter.finish();
        all.into_inner()
    }

    #[test]
    fn bytes_are_reported_as_they_pass_and_add_up_to_what_was_announced() {
        assert_eq!(reported(10, &[10]), [4, 4, 2]);
        assert_eq!(reported(10, &[6, 10]), [4, 2, 2, 2], "what is read again is reported once");
        assert_eq!(reported(10, &[3]), [3, 7], "a file that became shorter");
        assert_eq!(reported(5, &[12]), [4, 1], "a file that became longer");
        assert_eq!(reported(0, &[9]), [] as [u64; 0]);
    }
}
