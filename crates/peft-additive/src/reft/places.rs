//! Which tokens are a text's first and last ones.

use burn::tensor::{DType, Int, Tensor, TensorData};
use peft_core::nn::ForwardContext;

/// Where a text begins and ends: indices of its first and its last token among those behind the virtual ones.
type Span = (usize, usize);

/// The first `prefix` and the last `suffix` tokens of every text: ones there, zeros elsewhere, `[rows or 1, seq, 1]`.
///
/// Padding on either side and virtual tokens are no tokens of a text. Of a row with several texts, each has its own. Of a
/// text that is shorter, all tokens are first, and all are last ones.
pub(super) fn places(
    context: &ForwardContext,
    hidden: &Tensor<3>,
    [prefix, suffix]: [usize; 2],
) -> [Tensor<3>; 2] {
    let [rows, seq, _] = hidden.dims();
    let spans = spans(context, rows, seq);
    let like = (hidden, context.virtual_tokens().min(seq));
    match context.padding() {
        None => {
            let first = |at: usize, (start, _): Span| at - start < prefix;
            let last = |at: usize, (_, end): Span| end - at < suffix;
            [
                from_spans(&spans, like, first),
                from_spans(&spans, like, last),
            ]
        }
        Some(padding) => {
            let texts = seq - like.1;
            let own = padding.narrow(1, like.1, texts).bool_not().int();
            counted(&own, &spans, [prefix, suffix]).map(|mask| behind_virtual_tokens(mask, like))
        }
    }
}

/// The text of each token behind the virtual ones, row after row; one row where all are alike.
fn spans(context: &ForwardContext, rows: usize, seq: usize) -> Vec<Vec<Span>> {
    let texts = seq - context.virtual_tokens().min(seq);
    let positions = |row| {
        let positions = context.positions(row)?;
        // Of a layer that sees other tokens than the model's.
        let known = positions.len() == seq;
        known.then(|| &positions[seq - texts..])
    };
    let first = positions(0);
    let count = match first {
        Some(first) if (1..rows).any(|row| positions(row) != Some(first)) => rows,
        _ => 1,
    };
    let of_row = |row| {
        let Some(positions) = positions(row) else {
            return vec![(0, texts.saturating_sub(1)); texts];
        };
        // Where positions do not go on, another text begins.
        let starts: Vec<usize> = (0..texts)
            .filter(|at| *at == 0 || positions[*at] != positions[at - 1] + 1)
            .collect();
        let ends = starts.iter().skip(1).copied().chain([texts]);
        let spans = starts.iter().zip(ends);
        spans
            .flat_map(|(start, end)| vec![(*start, end - 1); end - start])
            .collect()
    };
    (0..count).map(of_row).collect()
}

/// Ones where `is_place` says so of a token and its text.
fn from_spans(
    spans: &[Vec<Span>],
    (like, virtual_tokens): (&Tensor<3>, usize),
    is_place: impl Fn(usize, Span) -> bool,
) -> Tensor<3> {
    let seq = like.dims()[1];
    let values: Vec<f32> = spans
        .iter()
        .flat_map(|row| {
            let texts = row.iter().enumerate();
            let texts = texts.map(|(at, span)| f32::from(is_place(at, *span)));
            std::iter::repeat_n(0.0, virtual_tokens).chain(texts)
        })
        .collect();
    let data = TensorData::new(values, [spans.len(), seq, 1]);
    Tensor::from_data(data, (&like.device(), like.dtype()))
}

/// The same where only the device knows which tokens are padding: `own` `[rows, texts]` is 1 where a token is none. Counts
/// are differences of running sums.
fn counted(
    own: &Tensor<2, Int>,
    spans: &[Vec<Span>],
    [prefix, suffix]: [usize; 2],
) -> [Tensor<2, Int>; 2] {
    let [rows, texts] = own.dims();
    let up_to = own.clone().cumsum(1);
    let whole = spans
        .iter()
        .all(|row| row.iter().all(|span| *span == (0, texts - 1)));
    let (before, at_end) = if whole {
        (
            Tensor::zeros_like(own),
            up_to.clone().narrow(1, texts - 1, 1),
        )
    } else {
        let index = |of: fn(&Span) -> usize| {
            let values: Vec<i64> = spans.iter().flatten().map(|span| of(span) as i64).collect();
            let data = TensorData::new(values, [spans.len(), texts]);
            Tensor::<2, Int>::from_data(data, &own.device()).expand([rows, texts])
        };
        let starts = index(|span| span.0);
        let before = up_to.clone().gather(1, starts.clone()) - own.clone().gather(1, starts);
        (before, up_to.clone().gather(1, index(|span| span.1)))
    };
    let first = (up_to.clone() - before)
        .lower_equal_elem(prefix as i64)
        .int();
    let last = (at_end - up_to).lower_elem(suffix as i64).int();
    [first * own.clone(), last * own.clone()]
}

/// `mask` `[rows, texts]` in the number format of `like`, with zeros for virtual tokens.
fn behind_virtual_tokens(
    mask: Tensor<2, Int>,
    (like, virtual_tokens): (&Tensor<3>, usize),
) -> Tensor<3> {
    let [rows, _] = mask.dims();
    let mask = mask.float().cast(like.dtype());
    let mask = match virtual_tokens {
        0 => mask,
        count => {
            let dtype: DType = like.dtype();
            Tensor::cat(
                vec![Tensor::zeros([rows, count], (&mask.device(), dtype)), mask],
                1,
            )
        }
    };
    mask.unsqueeze_dim(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Bool, Device};

    /// Marks of first and last tokens, in a row each.
    fn marks(
        context: &ForwardContext,
        rows: usize,
        seq: usize,
        counts: [usize; 2],
        device: &Device,
    ) -> Vec<String> {
        let hidden = Tensor::zeros([rows, seq, 2], device);
        let [first, last] = places(context, &hidden, counts);
        let values = |mask: Tensor<3>| -> Vec<f32> {
            mask.expand([rows, seq, 1])
                .into_data()
                .iter::<f32>()
                .collect()
        };
        let both: Vec<_> = values(first).into_iter().zip(values(last)).collect();
        let mark = |both: &(f32, f32)| match both {
            (0.0, 0.0) => '.',
            (1.0, 0.0) => 'f',
            (0.0, 1.0) => 'l',
            (1.0, 1.0) => 'b',
            other => panic!("{other:?}"),
        };
        both.chunks(seq)
            .map(|row| row.iter().map(mark).collect())
            .collect()
    }

    fn padding(rows: &[&str], device: &Device) -> Tensor<2, Bool> {
        let values: Vec<bool> = rows
            .iter()
            .flat_map(|row| row.chars().map(|c| c == '_'))
            .collect();
        let data = TensorData::new(values, [rows.len(), rows[0].len()]);
        Tensor::from_data(data, device)
    }

    #[test]
    fn padding_on_either_side_is_not_counted() {
        for (_, device) in peft_core::device::cpu_devices() {
            let context = ForwardContext::new().with_positions(1, (0..6).collect::<Vec<_>>());
            assert_eq!(marks(&context, 2, 6, [2, 1], &device), ["ff...l", "ff...l"]);
            let rows = [
                "xxxxxx", "xxxx__", "__xxxx", "_xxx__", "xx____", "____xx", "_x____",
            ];
            let context = context.with_padding(Some(padding(&rows, &device)));
            let expected = [
                "ff...l", "ff.l__", "__ff.l", "_ffl__", "fb____", "____fb", "_b____",
            ];
            let expected: Vec<String> = expected.iter().map(|row| row.replace('_', ".")).collect();
            assert_eq!(marks(&context, 7, 6, [2, 1], &device), expected);
        }
    }

    #[test]
    fn virtual_tokens_are_of_no_text() {
        for (_, device) in peft_core::device::cpu_devices() {
            let context = ForwardContext::new()
                .with_virtual_tokens(2)
                .with_positions(1, (3..9).collect::<Vec<_>>());
            assert_eq!(marks(&context, 1, 6, [1, 2], &device), ["..f.ll"]);
            let rows = padding(&["xx_xxx", "xxxx__"], &device);
            let context = context.with_padding(Some(rows));
            assert_eq!(marks(&context, 2, 6, [1, 2], &device), ["...fll", "..bl.."]);
        }
    }

    #[test]
    fn each_text_of_a_packed_row_has_its_own() {
        for (_, device) in peft_core::device::cpu_devices() {
            let positions: Vec<usize> = [[0, 1, 2, 3, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4]].concat();
            let context = ForwardContext::new().with_positions(2, positions);
            let marked = marks(&context, 2, 7, [1, 1], &device);
            assert_eq!(marked, ["f..lf.l", "flf...l"]);
            let rows = padding(&["xxxxxxx", "xxxxx__"], &device);
            let context = context.with_padding(Some(rows));
            let marked = marks(&context, 2, 7, [1, 1], &device);
            assert_eq!(marked, ["f..lf.l", "flf.l.."]);
        }
    }

    #[test]
    fn without_positions_a_row_is_a_text() {
        let (_, device) = &peft_core::device::cpu_devices()[0];
        assert_eq!(
            marks(&ForwardContext::new(), 1, 4, [1, 9], device),
            ["blll"]
        );
        assert_eq!(
            marks(&ForwardContext::new(), 1, 4, [0, 1], device),
            ["...l"]
        );
    }
}
