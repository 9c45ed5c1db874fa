"""Symptoms of a node's GPUs: their memory, what they can compute, their driver, and how a container gets them."""

from __future__ import annotations

_OTHER_GPU = "choose a node with a newer GPU, or another quantisation or data type of the model"
#: Pattern, cause and action, as in `symptoms.Symptom`; most specific first.
ROWS = (
    (
        r"Free memory on device\b[^(]*\((?P<free>[\d.]+)/(?P<all>[\d.]+) GiB\) on startup is less than desired GPU "
        r"memory utilization \((?P<share>[\d.]+)",
        "gpu-memory-utilization {share} does not fit: {free} of {all} GiB are free on the GPU when the engine starts",
        "end what else uses the GPU (nvidia-smi on the node), or lower --gpu-memory-utilization",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError|(?:CUDA|HIP) error: out of memory",
        "GPU memory is too small (vLLM: {line})",
        "lower --gpu-memory-utilization or --max-num-seqs, or raise --tensor-parallel-size; nvidia-smi on the node",
    ),
    (
        r"max seq len \((?P<length>\d+)\).*?(?P<need>[\d.]+ GiB) KV cache is needed.*?available KV cache memory "
        r"\((?P<free>[\d.]+ GiB)\).*?maximum model length is (?P<most>\d+)",
        "no memory for the KV cache: one request of {length} tokens needs {need}, {free} are free; {most} tokens fit",
        "lower --max-model-len to what fits, or raise --gpu-memory-utilization",
    ),
    (
        r"quantization method (?P<method>\S+) is not supported for the current GPU\. Minimum capability: (?P<least>\d+)"
        r"\. Current capability: (?P<has>\d+)",
        "quantisation {method} needs a GPU of compute capability {least}, this one has {has}",
        _OTHER_GPU,
    ),
    (
        r"Bfloat16 is only supported on GPUs with compute capability.*?Your (?P<gpu>.+?) GPU has compute capability "
        r"(?P<has>\d+\.\d+)",
        "bfloat16 is not supported by {gpu} (compute capability {has})",
        _OTHER_GPU,
    ),
    (
        r"type fp8e4nv not supported in this architecture",
        "quantisation fp8 is not supported by this GPU (vLLM: {line})",
        _OTHER_GPU,
    ),
    (
        r"uncorrectable ECC error|GPU is lost|fallen off the bus",
        "the node's GPU is defective ({line})",
        "drain the node and replace its GPU; nvidia-smi -q and the node's kernel log (Xid) show more",
    ),
    (
        r"Error 802: system not yet initialized",
        "the node's GPUs are not initialised ({line})",
        "start the NVIDIA fabric manager on the node: GPUs that NVSwitch connects need it",
    ),
    (
        r"CUDA-capable device\(s\) is/are busy|all CUDA-capable devices are busy",
        "the GPU is in use by another process ({line})",
        "end what else uses the GPU, or switch off its exclusive mode; nvidia-smi on the node",
    ),
    (
        r"CUDA error: invalid device ordinal",
        "the engine uses a GPU that the pod does not have ({line})",
        "request as many nvidia.com/gpu as --tensor-parallel-size, and set no CUDA_VISIBLE_DEVICES",
    ),
    (
        r"[Dd]river/library version mismatch|LibRmVersionMismatch",
        "the node's GPU driver was updated while its old module stays loaded ({line})",
        "drain the node and reboot it: until then no new container gets a GPU, and the running ones keep theirs",
    ),
    (
        r"NVML: Unknown Error|NVMLError_Unknown",
        "the container lost its GPU while it ran ({line})",
        "delete the pod; systemctl daemon-reload on the node detaches GPUs where its NVIDIA container toolkit is old",
    ),
    (
        r"CUDA unknown error",
        "the container cannot use the node's GPU ({line})",
        "restart the NVIDIA device plugin and container toolkit of the node, or reboot it; nvidia-smi in the pod",
    ),
    (
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient|unsupported display driver",
        "the node's GPU driver does not fit the image's CUDA (vLLM: {line})",
        "update the node's driver, or use an image that is built for its CUDA version; nvidia-smi prints both",
    ),
    (
        r"no kernel image is available for execution",
        "the image is not built for this GPU (vLLM: {line})",
        "use an image that is built for the GPU's compute capability, or another node",
    ),
    (
        r"No available memory for the cache blocks|larger than the maximum number of tokens|KV cache is needed",
        "no memory for the KV cache (vLLM: {line})",
        "raise --gpu-memory-utilization or lower --max-model-len",
    ),
    (
        r"Failed to infer device type|[Nn]o CUDA(?: GPUs are available|-capable device is detected)|"
        r"Found no NVIDIA driver|libcuda\.so\.1: cannot open",
        "no GPU in the pod (vLLM: {line})",
        "request nvidia.com/gpu in the resources; kubectl describe node shows what is allocatable",
    ),
)
