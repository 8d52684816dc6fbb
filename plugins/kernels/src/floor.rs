//! The least time that work can take on a device: its bytes at the rate of a copy, or its products at the rate of the
//! tensor cores, whichever is longer.

use std::time::Instant;

use anyhow::Result;

use crate::library::{Device, Library};
use crate::memory::Block;

/// Bytes that are copied to find the rate of a copy, how often in a row, and rows; the fastest counts.
const COPIED: usize = 1 << 30;
const COPIES: u32 = 4;
const ROWS: u32 = 6;

/// What a kernel has to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Multiplications and additions of eight-bit values.
    pub eight: f64,
    /// Multiplications and additions of 16-bit values.
    pub sixteen: f64,
    /// Bytes of inputs and outputs.
    pub bytes: f64,
}

impl Work {
    /// Multiplications and additions.
    pub fn operations(&self) -> f64 {
        self.eight + self.sixteen
    }
}

/// What a device can do at most.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Bytes read and written in a second by a copy, measured.
    pub copy: f64,
    /// Operations of 16-bit and of eight-bit values in a second at the highest clock, where we have a figure.
    pub tensor: Option<[f64; 2]>,
}

impl Ceilings {
    /// Measures a copy on the library's device.
    ///
    /// # Errors
    /// Out of memory, or the device is lost.
    pub fn measure(library: &Library) -> Result<Ceilings> {
        let (from, to) = (Block::new(library, COPIED)?, Block::new(library, COPIED)?);
        from.fill(1)?;
        let mut best = f64::INFINITY;
        for _ in 0..ROWS {
            library.synchronize()?;
            let start = Instant::now();
            // On the device alone they run on while the host goes on.
            (0..COPIES).try_for_each(|_| to.copy_from(&from))?;
            library.synchronize()?;
            best = best.min(start.elapsed().as_secs_f64() / f64::from(COPIES));
        }
        Ok(Ceilings { copy: 2.0 * COPIED as f64 / best, tensor: tensor(&library.device()?) })
    }

    /// Seconds that the work takes at least; none where nothing is known of what it needs.
    pub fn floor(&self, work: &Work) -> Option<f64> {
        let memory = work.bytes / self.copy;
        match self.tensor {
            Some([sixteen, eight]) => Some(memory.max(work.sixteen / sixteen + work.eight / eight)),
            None => (work.operations() == 0.0).then_some(memory),
        }
    }
}

/// Operations of 16-bit and eight-bit values in a second without sparsity, by NVIDIA's datasheets of A100 and H100: 312
/// and 624 TOPS of 108 multiprocessors at 1.41 GHz, 989 and 1979 of 132 at 1.83 GHz.
fn tensor(device: &Device) -> Option<[f64; 2]> {
    let per_clock = match device.capability {
        (8, 0) => [2048.0, 4096.0],
        (9, 0) => [4096.0, 8192.0],
        _ => return None,
    };
    let clocks = f64::from(device.multiprocessors) * f64::from(device.clock) * 1e3;
    Some(per_clock.map(|operations| operations * clocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(capability: (i32, i32)) -> Device {
        Device {
            name: "NVIDIA Some".to_string(),
            capability,
            multiprocessors: 132,
            clock: 1_830_000,
            driver: String::new(),
            runtime: String::new(),
            memory: 0,
            l2: 0,
        }
    }

    #[test]
    fn datasheet_rates_follow() {
        let [sixteen, eight] = tensor(&device((9, 0))).unwrap();
        assert!((sixteen * 1e-12 - 989.0).abs() < 2.0 && (eight * 1e-12 - 1979.0).abs() < 2.0);
        assert!(tensor(&device((12, 0))).is_none());
    }

    #[test]
    fn the_longer_of_copy_and_products_counts() {
        let known = Ceilings { copy: 1e12, tensor: Some([1e14, 2e14]) };
        let products = Work { eight: 2e12, sixteen: 1e12, bytes: 1e9 };
        assert_eq!(known.floor(&products), Some(0.02));
        assert_eq!(known.floor(&Work { bytes: 1e12, ..products }), Some(1.0));
        let unknown = Ceilings { tensor: None, ..known };
        assert_eq!(unknown.floor(&products), None);
        assert_eq!(unknown.floor(&Work { bytes: 1e12, ..Work::default() }), Some(1.0));
    }
}
