//! Cache of keys and values, for generation.

use burn::tensor::Tensor;
use peft_core::nn::Memory;

/// Keys and values of every layer, for going on with a text: [`Llama::cache`](super::Llama::cache).
#[derive(Clone, Debug)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
    pub(super) length: usize,
    /// What adapters keep.
    pub(super) memory: Memory,
}

/// Positions that a cache has room for when it first grows.
const ROOM: usize = 64;

/// Those of one layer: keys and values `[batch, room, num_key_value_heads · head_dim]`, of which the first
/// `length` positions are filled. Room doubles when it is used up, so that a token is written in its place and what
/// is there is not copied.
#[derive(Clone, Debug, Default)]
pub(super) struct LayerCache {
    buffers: Option<[Tensor<3>; 2]>,
    length: usize,
}

impl KvCache {
    pub(super) fn new(layers: usize) -> Self {
        Self {
            layers: vec![LayerCache::default(); layers],
            length: 0,
            memory: Memory::new(),
        }
    }

    /// Positions in the cache, virtual tokens included.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl LayerCache {
    pub(super) fn is_empty(&self) -> bool {
        self.buffers.is_none()
    }

    /// Adds keys and values; returns all.
    pub(super) fn extend(&mut self, key: Tensor<3>, value: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let from = self.length;
        self.length += key.dims()[1];
        let length = self.length;
        let [key, value] = match self.buffers.take() {
            None => [key, value],
            Some([keys, values]) => [(keys, key), (values, value)].map(|(all, new)| {
                let [rows, _, width] = new.dims();
                with_room(all, from, length).slice_assign([0..rows, from..length, 0..width], new)
            }),
        };
        // Views, which must be gone when the next token is written: a shared buffer would be copied.
        let all = [&key, &value].map(|buffer| buffer.clone().slice_dim(1, 0..length));
        self.buffers = Some([key, value]);
        let [keys, values] = all;
        (keys, values)
    }
}

/// The buffer, or a larger one with its `used` positions, if it has no room for `needed`.
fn with_room(buffer: Tensor<3>, used: usize, needed: usize) -> Tensor<3> {
    let [rows, room, width] = buffer.dims();
    if needed <= room {
        return buffer;
    }
    let more = needed.max(2 * room).max(ROOM) - used;
    let free = Tensor::zeros([rows, more, width], (&buffer.device(), buffer.dtype()));
    Tensor::cat(vec![buffer.slice_dim(1, 0..used), free], 1)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use peft_core::device::cpu_devices;

    use super::*;

    fn tensor(rows: usize, from: usize, count: usize, device: &Device) -> Tensor<3> {
        let values = (0..rows * count * 2).map(|at| {
            let (row, place) = (at / (2 * count), from + at / 2 % count);
            (row * 1000 + place * 2 + at % 2) as f32
        });
        Tensor::from_data(
            TensorData::new(values.collect::<Vec<f32>>(), [rows, count, 2]),
            device,
        )
    }

    #[test]
    fn what_was_added_comes_back_in_order() {
        for (name, device) in cpu_devices() {
            for rows in [1, 3] {
                let mut cache = LayerCache::default();
                let mut length = 0;
                for count in [5, 1, 1, 60, 1, 70, 1, 1, 300] {
                    let key = tensor(rows, length, count, &device);
                    let (keys, values) = cache.extend(key.clone(), key * -1.0);
                    length += count;
                    let expected = tensor(rows, 0, length, &device);
                    let what = format!("{name}, {rows} rows, {length}");
                    assert_eq!(keys.into_data(), expected.clone().into_data(), "{what}");
                    assert_eq!(values.into_data(), (expected * -1.0).into_data(), "{what}");
                }
            }
        }
    }

    /// Two texts that begin alike may share what was read.
    #[test]
    fn a_copy_goes_on_alone() {
        let device = cpu_devices().remove(0).1;
        let mut cache = LayerCache::default();
        let token = |value: f32| Tensor::<3>::full([1, 1, 2], value, &device);
        for value in [1.0, 2.0, 3.0] {
            cache.extend(token(value), token(value));
        }
        let mut copy = cache.clone();
        copy.extend(token(4.0), token(4.0));
        let (keys, _) = cache.extend(token(5.0), token(5.0));
        let found = keys.into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(found, [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 5.0, 5.0]);
        let (keys, _) = copy.extend(token(6.0), token(6.0));
        let found = keys.into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(found[6..], [4.0, 4.0, 6.0, 6.0]);
    }
}
