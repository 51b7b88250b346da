"""Wanda by brute force: every input that a weight meets, written down, and norms in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from naive import data_for, top
from nets import make_cnn, make_mlp
from test_prune_errors import assert_untouched, snapshot
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import snipkern as sk
from snipkern.criteria import Wanda

pytestmark = pytest.mark.usefixtures("one_thread")


def loss_of(model, batch):
    """Of whatever comes out."""
    out = model(*batch) if isinstance(batch, tuple) else model(batch)
    out = out[0] if isinstance(out, tuple) else out
    return getattr(out, "data", out).float().square().mean()


def norms(rows):
    """Of inputs ``[any, features]``."""
    return torch.cat([r.reshape(-1, r.shape[-1]).double() for r in rows]).square().sum(0).sqrt()


def require_scores(model, batches, want, **options):
    got = sk.score(model, batches, criterion="wanda", loss_fn=loss_of, batches=len(batches), **options)
    weights = dict(model.named_parameters())
    assert set(got) == set(want)
    for name, norm in want.items():
        scores = weights[name].detach().double().abs() * norm
        torch.testing.assert_close(got[name].double(), scores, rtol=1e-5, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (2, 0), "dilation": (1, 2), "bias": False},
    {"kernel_size": 3, "groups": 2, "padding": 1, "stride": 3},
    {"kernel_size": (2, 4), "groups": 4, "padding": "same", "dilation": (3, 1)},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "circular", "groups": 4},
    {"kernel_size": 1, "padding": "valid"},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions_by_unfolded_patches(options, generator):
    conv = nn.Conv2d(4, 8, **options)
    batches = [torch.randn(3, 4, 9, 8, generator=generator) for _ in range(2)]
    groups, mode = conv.groups, "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    sides = conv._reversed_padding_repeated_twice
    patches = []
    for x in batches:
        padded = F.pad(x, sides, mode=mode)
        unfolded = F.unfold(padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)  # [B, C * taps, L]
        patches.append(unfolded.transpose(1, 2))
    norm = norms(patches).view(groups, 1, 4 // groups, *conv.kernel_size)
    norm = norm.expand(groups, 8 // groups, -1, -1, -1).reshape(conv.weight.shape)
    require_scores(conv, batches, {"weight": norm})


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d])
def test_other_dimensions_by_the_gradient_of_a_convolution(kind, generator):
    """The derivative of ``sum(conv(x^2, w))`` by ``w`` adds up what each weight meets."""
    conv = kind(4, 6, 3, stride=2, padding=1, groups=2)
    size = (7,) if kind is nn.Conv1d else (7, 6, 5)
    for x in (torch.randn(3, 4, *size, generator=generator), torch.randn(4, *size, generator=generator)):
        twin = kind(4, 6, 3, stride=2, padding=1, groups=2, bias=False).double()
        twin(x.double().square()).sum().backward()
        require_scores(conv, [x], {"weight": twin.weight.grad.sqrt()})


def test_linear_layers_of_any_rank_and_shared_ones(generator):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 4)
            self.two.weight = self.one.weight

        def forward(self, x):
            seen.append([x])
            x = self.one(x).relu()
            seen[-1].append(x)
            x = self.two(input=x).relu()
            seen[-1].append(x)
            return self.head(x)

    for dtype in (torch.float32, torch.bfloat16):
        seen, model = [], Net().to(dtype)
        require = [torch.randn(2, 3, 6, generator=generator).to(dtype) for _ in range(3)]
        got = sk.score(model, require, criterion="wanda", loss_fn=loss_of, batches=3)
        shared = norms([x for call in seen for x in call[:2]])
        weights = {n: p.detach().double().abs() for n, p in model.named_parameters()}
        torch.testing.assert_close(got["one.weight"].double(), weights["one.weight"] * shared, rtol=1e-5, atol=1e-9)
        head = weights["head.weight"] * norms([call[2] for call in seen])
        torch.testing.assert_close(got["head.weight"].double(), head, rtol=1e-5, atol=1e-9)


CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN_TANH": nn.RNNCell}


def brute_recurrent(rnn, sequences, hx):
    """Norms for every weight, of single sequences ``[T, in]``, cell by cell."""
    directions = 2 if rnn.bidirectional else 1
    met = {}
    for layer in range(rnn.num_layers):
        outputs = [[] for _ in sequences]
        for direction in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            cell = CELLS[rnn.mode](sequences[0].shape[1], rnn.hidden_size, bias=rnn.bias)
            cell.load_state_dict({key: getattr(rnn, key + suffix).detach() for key in cell.state_dict()})
            for i, sequence in enumerate(sequences):
                states = [torch.zeros(1, rnn.hidden_size)] * 2
                if hx is not None:
                    states = [h[layer * directions + direction, i][None] for h in hx]
                found = []
                for x in sequence.flip(0) if direction else sequence:
                    met.setdefault(f"weight_ih{suffix}", []).append(x)
                    met.setdefault(f"weight_hh{suffix}", []).append(states[0][0])
                    after = cell(x[None], tuple(states) if rnn.mode == "LSTM" else states[0])
                    states = list(after) if rnn.mode == "LSTM" else [after]
                    found.append(states[0][0].detach())
                outputs[i].append(torch.stack(found[::-1] if direction else found))
        sequences = [torch.cat(parts, 1) for parts in outputs]
    return {name: norms(rows) for name, rows in met.items()}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers, both", [(1, False), (2, True), (3, False)])
@pytest.mark.parametrize("form", ["padded", "first", "packed", "unsorted", "single"])
def test_recurrent_layers_cell_by_cell(kind, layers, both, form, generator):
    rnn = kind(3, 4, layers, bidirectional=both, batch_first=form == "first", bias=layers != 3).eval()
    lengths = [5, 5, 5] if form in ("padded", "first") else [5] if form == "single" else [5, 3, 1]
    lengths = [1, 5, 3] if form == "unsorted" else lengths
    sequences = [torch.randn(n, 3, generator=generator) for n in lengths]
    states = layers * (2 if both else 1), len(lengths), 4
    hx = tuple(torch.randn(states, generator=generator) for _ in range(2 if kind is nn.LSTM else 1))
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=form == "first")
    x, given = padded, hx
    if form == "single":
        x, given = sequences[0], tuple(h[:, 0] for h in hx)
    elif form in ("packed", "unsorted"):
        x = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=form == "packed")
    given = given if kind is nn.LSTM else given[0]
    with torch.no_grad():
        require_scores(rnn, [(x, given)], brute_recurrent(rnn, sequences, hx))
        require_scores(rnn, [(x, None)], brute_recurrent(rnn, sequences, None))


def test_cells(generator):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.gru = nn.LSTMCell(3, 4), nn.GRUCell(4, 5)

        def forward(self, x):
            h, c = self.lstm(x)
            again, _ = self.lstm(x, (h, c))
            met.append((h, again))
            return self.gru(again, hx=None)

    met, x = [], torch.randn(6, 3, generator=generator)
    model = Net()
    loss_of(model, x)
    h, again = (t.detach() for t in met[0])
    zeros = torch.zeros(5, dtype=torch.float64)
    want = {"lstm.weight_ih": norms([x, x]), "lstm.weight_hh": norms([h]), "gru.weight_ih": norms([again])}
    require_scores(model, [x], {**want, "gru.weight_hh": zeros})


@pytest.mark.parametrize("split", [False, True])
def test_attention(split, generator):
    """Queries, keys and values for the input projections; what is attended for the output's."""
    model = nn.MultiheadAttention(8, 2, kdim=6 if split else None, vdim=4 if split else None, batch_first=True).eval()
    q = torch.randn(2, 5, 8, generator=generator)
    k, v = (
        torch.randn(2, 7, 6 if split else 8, generator=generator),
        torch.randn(2, 7, 4 if split else 8, generator=generator),
    )
    with torch.no_grad():
        if split:
            three = model.q_proj_weight, model.k_proj_weight, model.v_proj_weight
        else:
            three = model.in_proj_weight.chunk(3)
        heads = [
            (x @ w.T + b).view(2, -1, 2, 4).transpose(1, 2)
            for x, w, b in zip((q, k, v), three, model.in_proj_bias.chunk(3), strict=True)
        ]
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(2, 5, 8)
    found = [norms([x]) for x in (q, k, v)]
    want = {"out_proj.weight": norms([attended])}
    if split:
        want |= dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), found, strict=True))
    else:
        want["in_proj_weight"] = torch.stack(found).repeat_interleave(8, 0)
    before = snapshot(model)
    require_scores(model, [(q, k, v)], want)
    assert_untouched(model, before)


def test_transformer_layers_are_seen_whatever_fast_paths_there_are(generator):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2).eval()
    x = torch.randn(3, 4, 8, generator=generator)
    got = sk.score(model, [x], criterion="wanda", loss_fn=loss_of)
    first = model.layers[0]
    torch.testing.assert_close(got["layers.0.self_attn.in_proj_weight"].double(),
                               first.self_attn.in_proj_weight.detach().double().abs() * norms([x]), rtol=1e-5, atol=1e-9)  # fmt: skip
    assert len(got) == 8 and all(bool((s > 0).any()) for s in got.values())


def test_every_output_keeps_the_same_share_unless_told_otherwise(generator):
    model, data = make_cnn(), data_for("cnn", generator)
    plan = sk.plan(model, data, keep=0.3, criterion="wanda")
    assert plan.masks == sk.plan(model, data, keep=0.3, criterion=Wanda(), scope="row").masks
    for mask in plan.masks.values():
        per_row = mask.to_dense().flatten(1).sum(1)
        assert per_row.max() - per_row.min() <= 1
    scores = sk.score(model, data, criterion="wanda")
    plan = sk.plan(model, data, keep=0.3, criterion="wanda", scope="layer")
    for name, mask in plan.masks.items():
        assert torch.equal(mask.to_dense(), top(scores[name], mask.count()))


class Unseen(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.first, self.part = nn.Linear(20, 5), part

    def forward(self, x):
        x = self.first(x)
        if isinstance(self.part, nn.Embedding):
            return x + self.part(torch.zeros(len(x), dtype=torch.long))
        if isinstance(self.part, nn.LSTM):
            return self.part(x[:, None])[0][:, 0]
        return F.linear(x, self.part.weight)


UNSEEN = {
    "a weight that is read": (lambda: nn.Linear(5, 5), "part.weight", "Linear"),
    "a table": (lambda: nn.Embedding(3, 5), "part.weight", "Embedding"),
    "a projection": (lambda: nn.LSTM(5, 7, proj_size=5), "part.weight_hr_l0", "LSTM"),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_weights_whose_inputs_nobody_sees_are_named(name, generator):
    make, parameter, kind = UNSEEN[name]
    model = Unseen(make())
    before = snapshot(model)
    message = rf"wanda: the inputs .* leave this one out with filter_fn \(got none for '{parameter}', of a {kind} that"
    everything = {"filter_fn": lambda module, fqn: True}
    with pytest.raises(ValueError, match=message):
        sk.prune_(model, data_for("mlp", generator), keep=0.2, criterion="wanda", **everything)
    assert_untouched(model, before)
    rest = {"filter_fn": lambda module, fqn: fqn == "first"}
    assert sk.plan(model, data_for("mlp", generator), keep=20, criterion="wanda", **rest).kept == 20


def test_inputs_that_are_not_finite_are_named(generator):
    model, [(x, y)] = make_mlp(), data_for("mlp", generator)
    x[3, 4] = torch.inf
    with pytest.raises(ValueError, match=r"wanda: inputs must be finite \(got others for '0.weight'\)"):
        sk.plan(model, [(x, y)], keep=0.2, criterion="wanda", loss_fn=lambda m, b: m(b[0]).nan_to_num().sum())
    assert not model[0]._forward_hooks
