"""3a. A projector that makes any number of rows into a fixed number of features: learned queries attend to the rows.

Flamingo's perceiver resampler (https://arxiv.org/abs/2204.14198) with a linear layer behind it.
Shapes: N inputs, T rows an input has, E their width, Q queries, D the width that comes out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from cornstarch.errors import ArgumentError


class Resampler(nn.Module):
    """Learned queries that attend to the rows of an input, and to each other, layer after layer.

    Args:
        in_features: width of the rows, and of the layers.
        out_features: width of the features.
        queries: how many features each input yields.
        layers: how many times the queries attend to the rows.
        heads: of attention.
        activation: between the two linear layers behind each attention, a name in `transformers.activations.ACT2CLS`.

    Raises:
        ArgumentError: if a number is below 1, or the heads do not divide the width.
    """

    def __init__(
        self, in_features: int, out_features: int, queries: int, layers: int, heads: int, activation: str = "gelu"
    ) -> None:
        super().__init__()
        for name, number in (("queries", queries), ("layers", layers), ("heads", heads)):
            if number < 1:
                raise ArgumentError(f"a resampler needs {name} of at least 1, found {number}")
        if in_features % heads:
            raise ArgumentError(f"the heads of a resampler divide its width {in_features}, found heads={heads}")
        self.in_features = in_features
        self.out_features = out_features
        self.heads = heads
        self.queries = nn.Parameter(torch.empty(queries, in_features))
        nn.init.normal_(self.queries, std=0.02)
        self.layers = nn.ModuleList(_Layer(in_features, heads, activation) for _ in range(layers))
        self.norm = nn.LayerNorm(in_features)
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Resample.

        Args:
            hidden_states: (N, T, E).
            mask: (N, T), False at padding, which nothing attends to; None where there is none.

        Returns:
            (N, Q, D).
        """
        latents = self.queries.expand(hidden_states.shape[0], -1, -1)
        if mask is not None:
            own = mask.new_ones(latents.shape[:2])
            mask = torch.cat([mask, own], dim=1)[:, None, None]  # (N, heads, queries, rows and queries)
        for layer in self.layers:
            latents = layer(latents, hidden_states, mask)
        return self.linear(self.norm(latents))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """What its parts do not show."""
        return f"queries={self.queries.shape[0]}, heads={self.heads}"


class _Layer(nn.Module):
    """Attention of the queries to the rows and the queries, then two linear layers; normalised before each."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.heads = heads
        self.rows_norm = nn.LayerNorm(width)
        self.queries_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            ACT2FN[activation],
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, latents: Tensor, rows: Tensor, mask: Tensor | None) -> Tensor:
        """The queries (N, Q, E) after the layer; rows (N, T, E), mask (N, 1, 1, T + Q)."""
        own = self.queries_norm(latents)
        seen = torch.cat([self.rows_norm(rows), own], dim=1)
        query, key, value = (
            states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for states in (self.query(own), self.key(seen), self.value(seen))
        )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        latents = latents + self.output(attended.transpose(1, 2).flatten(2))
        return latents + self.mlp(latents)  # type: ignore[no-any-return]
