// The module fastrot.kernels._native: one entry point per operation, without torch's headers.

#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_rotate(nb::module_ &module);
void bind_cosine_topk(nb::module_ &module);
#ifdef FASTROT_WITH_DECODE
void bind_decode(nb::module_ &module);
void bind_batch(nb::module_ &module);
void bind_markers(nb::module_ &module);
#endif

NB_MODULE(_native, module) {
  nb::set_leak_warnings(false);  // a loader may live until the interpreter exits
  bind_rotate(module);
  bind_cosine_topk(module);
#ifdef FASTROT_WITH_DECODE
  bind_decode(module);
  bind_batch(module);
  bind_markers(module);
  module.attr("built_with_decode") = true;
#else
  module.attr("built_with_decode") = false;
  module.attr("libjpeg_version") = nb::none();
  module.attr("simd") = nb::none();
#endif
}
