"""From "repo:branch" to a model on its devices: hub, quantisation, kernels.

Knows nothing of HTTP or scheduling. Each package answers one question:

repository    Where do a variant's files lie, and how do they get to this machine?
catalogue     Which variants does a repository hold?
checkpoint    What do a checkpoint's files say?
gguf          What does a GGUF file say, in the words of Transformers?
quantization  How is a layer packed, and which kernel takes it?
memory        What does a model take on a device, and what has the device free?
planning      Which variant fits a device, and why?
model         How do opened files become a model with its kernels prepared?
reports       What did loading find out?
demo          What can be served where no hub is?

load          From a name to a `LoadedModel`: the list of the steps.
errors        Everything that is raised on purpose.
cache         Where files are kept on this machine.
records       What this machine has learnt of a checkpoint.
"""
