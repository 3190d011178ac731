"""The smallest plans: their head, the network of their nodes, and a few graphs of them."""

MODEL = "{ d_model = 8, d_kv = 4, d_ff = 16, num_heads = 2, num_layers = 1, num_decoder_layers = 1 }"
HEAD = """
steps_per_dispatch = 5
[data]
text = ["text.txt"]
vocab = 300
validation_share = 0.2
validation_batches = 2
[defaults]
batch = 4
length = 16
optimizer = { name = "adafactor", rate = 0.02 }
cadence = { log = 5, evaluate = 10, checkpoint = 10 }
"""
SOURCES = f"""
[node.a]
model = {MODEL}
steps = 20
[node.b]
model = {MODEL}
steps = 20
seed = 1
"""
GROWN = """
[node.fused]
sources = ["a", "b"]
[node.m]
from = "fused"
steps = 10
seed = 2
"""
BUDGET = HEAD.replace("[data]", 'budget = { node = "m", steps = 100 }\n[data]')
SELF = '[node.fused]\nsources = ["a", "a"]\n'
ARMS = f"""
[node.a]
model = {MODEL}
steps = "35%"
{SELF}
[node.m]
from = "fused"
steps = "rest"
arm = "grown"
[node.alone]
from = "a"
steps = "rest"
[node.large]
model = {MODEL.replace("8", "16").replace("d_ff = 16", "d_ff = 32").replace("heads = 2", "heads = 4")}
steps = "rest"
seed = 3
"""
