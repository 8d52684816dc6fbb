//! The numbers that a seed stands for must never change: they are in users' notes.

use turbo_sampler::{NoiseSource, Portable};

/// Seed, draw, element, bits of the f32 there: from the documented formula in arbitrary precision, outside Rust.
const VALUES: [(u64, usize, usize, u32); 9] = [
    (0, 0, 0, 0xbecb9b14),
    (0, 0, 1, 0xbe9eec28),
    (0, 1, 0, 0xbeb3c8c1),
    (0, 4, 5, 0xbf38587f),
    (1, 0, 0, 0xbde8d12a),
    (42, 0, 17, 0x3c3d8087),
    (42, 3, 100000, 0xbf2b0590),
    (123456789012, 0, 2, 0x3f39ad79),
    (u64::MAX, 2, 33333, 0xbdeb92c9),
];

#[test]
fn seeds_keep_their_meaning() {
    for (seed, draw, at, expected) in VALUES {
        let mut source = Portable::new(seed);
        for _ in 0..draw {
            source.draw(1).unwrap();
        }
        let value: f32 = source.draw(at + 1).unwrap()[at];
        assert_eq!(value.to_bits(), expected, "seed {seed}, draw {draw}, element {at}: {value}");
    }
}
