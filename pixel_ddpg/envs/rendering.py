"""The GL backend, chosen before mujoco is imported, and a camera that keeps its scene."""

import contextlib
import ctypes
import gc
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator

import numpy as np

from pixel_ddpg import container
from pixel_ddpg.errors import UserError, first_line

LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
EGL_CUDA_DEVICE_NV = 0x323A  # of EGL_NV_device_cuda
FIX_GL = (
    "leave MUJOCO_GL and MUJOCO_EGL_DEVICE_ID unset, or install a software one with `apt-get install libegl1 "
    "libgl1-mesa-dri`"
)


def choose_backend(threads: int = 0, gpu: int | None = None) -> str:
    """Set MUJOCO_GL, unless the user has, to the first library found here; 'disable' where there is none.

    Call it before mujoco is imported; later it changes nothing that mujoco reads. `threads` is for software GL; 0: all
    that this process may use. `gpu` is the number that CUDA gives the GPU which is to draw.
    """
    for name in ("LP_NUM_THREADS", "MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID"):
        if os.environ.get(name) == "":  # set but empty is as unset, also for mujoco
            del os.environ[name]
    os.environ.setdefault("LP_NUM_THREADS", str(threads or container.available_threads()))
    if "mujoco" not in sys.modules:
        if not os.environ.get("MUJOCO_GL") and sys.platform == "linux":
            os.environ["MUJOCO_GL"] = next((name for name, library in LIBRARIES.items() if _loads(library)), "disable")
        backend = os.environ.get("MUJOCO_GL", "")
        if backend in LIBRARIES:
            os.environ["PYOPENGL_PLATFORM"] = backend  # dm_control refuses another one, from state too
        if gpu is not None and backend == "egl" and gpu in (numbers := cuda_numbers()):
            os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", str(numbers.index(gpu)))
    return os.environ.get("MUJOCO_GL", "the system's own")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def cuda_numbers() -> list[int | None]:
    """CUDA's number of each of EGL's devices, which EGL lists in an order of its own; None: not a GPU of CUDA's."""
    if not _loads(LIBRARIES["egl"]):
        return []
    find = ctypes.CDLL(LIBRARIES["egl"]).eglGetProcAddress
    find.argtypes, find.restype = [ctypes.c_char_p], ctypes.c_void_p
    addresses = [find(name) for name in (b"eglQueryDevicesEXT", b"eglQueryDeviceAttribEXT")]
    if not all(addresses):
        return []
    pointer, many, number = ctypes.c_void_p, 64, ctypes.c_int32()
    list_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int32, pointer, pointer)(addresses[0])
    ask = ctypes.CFUNCTYPE(ctypes.c_uint, pointer, ctypes.c_int32, pointer)(addresses[1])
    devices, answer = (pointer * many)(), ctypes.c_ssize_t()
    if not list_devices(many, devices, ctypes.byref(number)):
        return []
    return [
        answer.value if ask(device, EGL_CUDA_DEVICE_NV, ctypes.byref(answer)) else None
        for device in devices[: number.value]
    ]


@contextlib.contextmanager
def logging_kept() -> Iterator[None]:
    """The program's logging stays as it was, though absl's first message gives the root logger a handler."""
    from absl import logging as absl_logging

    verbosity, handlers = absl_logging.get_verbosity(), logging.root.handlers[:]
    absl_logging.set_verbosity(absl_logging.ERROR)  # dm_control's models use an attribute that mujoco calls deprecated
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
        logging.root.handlers[:] = handlers


@contextlib.contextmanager
def gl_failures_explained():
    """Turns the many ways in which GL fails to start into one UserError that says what to do."""
    try:
        # GLFW's, about the display that is not there
        with warnings.catch_warnings(action="ignore"), logging_kept():
            yield
    except UserError:
        raise
    except KeyboardInterrupt as error:
        _forget(error)
        raise
    except Exception as error:
        text = first_line(error)
        backend = os.environ.get("MUJOCO_GL")
        _forget(error)
        if not backend and sys.platform == "linux":
            raise UserError("no pictures: set MUJOCO_GL=egl before mujoco or dm_control is imported", code=1) from None
        raise UserError(f"no pictures with MUJOCO_GL={backend} ({text}): {FIX_GL}", code=1) from None


def _forget(error: BaseException) -> None:
    """Free what had been created, without the errors of a half-built GL context's destructor."""
    complain, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings(action="ignore"):
            traceback.clear_frames(error.__traceback__)
            gc.collect()
    finally:
        sys.unraisablehook = complain


_PROCESS: list[int] = []  # the process whose GL has been used


def _refuse_forks() -> None:
    """UserError in a process that was forked from one that had drawn: its first GL call would never return."""
    if _PROCESS and _PROCESS[0] != os.getpid():
        raise UserError('GL does not survive a fork: start processes with "spawn" (vector_kwargs={"context": "spawn"})')
    _PROCESS[:] = [os.getpid()]


class Renderer:
    """Pictures of a physics through one camera, as uint8 (3, size, size); the scene is built once.

    A GL context belongs to the thread that made it: UserError in another one.
    """

    def __init__(self, physics, size: int, camera: int, shadow_size: int, slices: int, stacks: int = 0):
        _refuse_forks()
        self._made_with = (physics, size, camera, shadow_size, slices, stacks)
        with gl_failures_explained():
            from dm_control.mujoco import engine

            _set_quality(physics.model.vis, size, shadow_size, slices, stacks or slices * 4 // 7)
            _enlarge_buffer(physics, size)
            self._camera = engine.Camera(physics, height=size, width=size, camera_id=camera)
            self._thread = threading.get_ident()

    def __reduce__(self) -> tuple:
        """A copy, or what is unpickled elsewhere, has a GL context of its own."""
        return Renderer, self._made_with

    def render(self) -> np.ndarray:
        """The current state, channels first."""
        if threading.get_ident() != self._thread:
            raise UserError(
                "pictures come only from the thread that first used the environment: make one in each thread", code=1
            )
        try:
            picture = self._camera.render()
        except Exception as error:  # GL's, EGL's or MuJoCo's: nothing that draws is left
            raise UserError(
                f"a picture could not be drawn ({first_line(error)}): the GPU or its driver may have been reset; the "
                "same command resumes from the last checkpoint",
                code=1,
            ) from error
        return np.ascontiguousarray(picture.transpose(2, 0, 1))


def _set_quality(visual, size: int, shadow_size: int, slices: int, stacks: int) -> None:
    """What MuJoCo reads once, when it makes the context; the buffer is no larger than the picture, as it is cleared
    and resolved whole."""
    visual.quality.shadowsize = shadow_size
    visual.quality.numslices, visual.quality.numstacks = slices, stacks
    visual.global_.offwidth = visual.global_.offheight = size


def _enlarge_buffer(physics, size: int) -> None:
    """Make room for pictures larger than the first renderer's."""
    import mujoco

    context = physics.contexts.mujoco.ptr
    if size > min(context.offWidth, context.offHeight):
        with physics.contexts.gl.make_current() as thread:
            thread.call(mujoco.mjr_resizeOffscreen, size, size, context)


def describe(physics) -> str:
    """Backend and the renderer's own name of itself: egl, llvmpipe (LLVM 15), software; or egl and a GPU's name."""
    from OpenGL import GL

    with gl_failures_explained(), physics.contexts.gl.make_current() as context:
        name = context.call(GL.glGetString, GL.GL_RENDERER).decode()
    drawn_by = "software" if any(word in name.lower() for word in ("llvmpipe", "softpipe", "swrast")) else "GPU"
    return f"{os.environ.get('MUJOCO_GL', 'GL')}, {name}, {drawn_by}"
