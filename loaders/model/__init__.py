"""From opened files to a model on its devices, with kernels prepared and tested."""
