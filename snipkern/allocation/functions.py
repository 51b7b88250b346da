"""What torch's functions, by name, do to channels."""

#: Each channel of the result comes from the same one of the input.
KEEPING = frozenset(
    """relu relu_ relu6 gelu silu elu selu celu mish leaky_relu hardswish hardtanh hardsigmoid tanh sigmoid softplus
    threshold threshold_ prelu rrelu logsigmoid softsign tanh_ sigmoid_ clamp clamp_ clamp_min abs square sqrt rsqrt exp
    log log1p neg pow dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout dropout_ batch_norm
    layer_norm group_norm instance_norm rms_norm local_response_norm max_pool1d max_pool2d max_pool3d avg_pool1d
    avg_pool2d avg_pool3d lp_pool2d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d interpolate contiguous clone detach to float half bfloat16 double type
    type_as cuda cpu requires_grad_ nan_to_num""".split()
)
#: Operands of one shape meet element by element.
UNITING = frozenset(
    """add add_ sub sub_ mul mul_ div div_ true_divide maximum minimum __add__ __radd__ __iadd__
    __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ __truediv__ __rtruediv__ __itruediv__ rsub""".split()
)
RESHAPING = frozenset("view reshape flatten unflatten squeeze unsqueeze view_as reshape_as".split())
REDUCING = frozenset("mean sum amax amin".split())
#: Sequences of several lengths, with and without the steps that are not there.
PACKING = frozenset({"_pack_padded_sequence", "_pad_packed_sequence"})
#: Recurrent layers, and cells: how many gates they have, and the one without which nothing comes out of a layer
#: without biases: the candidate's, since zero times anything is zero.
RECURRENT = {"lstm": (4, 2), "gru": (3, 2), "rnn_tanh": (1, 0), "rnn_relu": (1, 0)}
CELLS = {"lstm_cell": "lstm", "gru_cell": "gru", "rnn_tanh_cell": "rnn_tanh", "rnn_relu_cell": "rnn_relu"}
#: Those that multiply by a weight, and their arguments.
LAYERS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
CALL = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
#: Tables: what comes out has its own dimension of features, whatever went in.
LOOKUPS = frozenset({"embedding", "embedding_bag"})
