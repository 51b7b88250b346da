// Python functions that tell this processor's limits; see cpu/probe.h.
#pragma once

#include <Python.h>

namespace snipkern {

// probe_multiply_adds(passes) -> (operations, seconds), on all of torch's threads at once.
PyObject* python_probe_multiply_adds(PyObject*, PyObject* args);

// probe_reads(bytes, passes) -> (bytes read, seconds), on all of torch's threads at once, each with its own buffer.
PyObject* python_probe_reads(PyObject*, PyObject* args);

}  // namespace snipkern
