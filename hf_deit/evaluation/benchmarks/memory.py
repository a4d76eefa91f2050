"""How much memory a process takes. Loads no library: their weight would be counted."""

import contextlib
import ctypes
import sys


def forget_peak(device: str) -> None:
    """Lets `peak_memory` begin anew, where the system can."""
    if device == "cpu":
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    elif "torch" in sys.modules:
        sys.modules["torch"].cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> int | None:
    """The most bytes since it was last forgotten; where a CPU's system does not forget, since the process began."""
    if device != "cpu":
        torch = sys.modules["torch"]
        return torch.cuda.max_memory_reserved() or None  # ONNX Runtime's is not told
    if (most := _status("VmHWM:")) is not None:
        return most
    with contextlib.suppress(ImportError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return None


def resident_memory() -> int | None:
    """The bytes that this process holds; None where the system does not tell."""
    return _status("VmRSS:")


def release() -> None:
    """Gives back what was freed, where the C library keeps it for later."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int | None:
    """Bytes, of Linux's /proc."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return None
