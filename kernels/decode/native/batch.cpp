// Python bindings of the pool; kernels/decode/crop.py keeps the arrays alive.

#include <optional>
#include <stdexcept>
#include <system_error>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>

#include "pool.h"

namespace nb = nanobind;

namespace fastrot {
namespace {

template <typename T, int kDimensions>
using Array = nb::ndarray<const T, nb::ndim<kDimensions>, nb::c_contig, nb::device::cpu>;
using Images = nb::ndarray<std::uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ticket = std::shared_ptr<Batch>;

constexpr std::int32_t kLargestSide = 1 << 26;

// Settings shared by all crops of a batch.
struct Settings {
  int size;
  bool exact;
  bool colour_only;
  std::uint64_t max_pixels;
};

struct Crops {
  Array<std::int32_t, 2> boxes;        // (N, 4): left, top, width, height
  Array<std::int32_t, 2> sizes;        // (N, 2): width, height
  Array<std::uint8_t, 1> orientation;  // (N,)
  Array<std::uint8_t, 1> raw;          // (N,)
  Array<std::uint8_t, 1> to_end;       // (N,)
};

void require(bool condition, const char *message) {
  if (!condition) throw nb::value_error(message);
}

Ticket new_batch(const std::optional<Images> &out, const Crops &crops, const Settings &settings) {
  const std::size_t count = crops.boxes.shape(0);
  require(crops.boxes.shape(1) == 4 && crops.sizes.shape(0) == count &&
              crops.sizes.shape(1) == 2 && crops.orientation.shape(0) == count &&
              crops.raw.shape(0) == count && crops.to_end.shape(0) == count,
          "boxes (N, 4), sizes (N, 2), orientation, raw, to_end (N,)");
  require(settings.size >= 1 && settings.size <= 1 << 16, "size must be 1 to 65536");
  const auto side = static_cast<std::size_t>(settings.size);
  auto batch = std::make_shared<Batch>();
  if (out) {
    require(out->shape(0) == count && out->shape(1) == side && out->shape(2) == side &&
                out->shape(3) == 3,
            "out (N, size, size, 3)");
    batch->out = out->data();
  }
  batch->row_bytes = side * side * 3;
  batch->places.resize(count);
  batch->requests.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t *box = crops.boxes.data() + i * 4, *size = crops.sizes.data() + i * 2;
    CropRequest &request = batch->requests[i];
    for (int k = 0; k < 4; ++k) {
      require(box[k] >= (k < 2 ? -kLargestSide : 1) && box[k] <= kLargestSide,
              "a box is out of range");
    }
    require(size[0] >= 1 && size[0] <= kLargestSide && size[1] >= 1 && size[1] <= kLargestSide,
            "a size is out of range");
    require(crops.orientation.data()[i] >= 1 && crops.orientation.data()[i] <= 8,
            "an orientation is not 1 to 8");
    request.box = Box{box[0], box[1], box[2], box[3]};
    request.width = static_cast<std::uint32_t>(size[0]);
    request.height = static_cast<std::uint32_t>(size[1]);
    request.orientation = crops.orientation.data()[i];
    request.size = settings.size;
    request.raw = crops.raw.data()[i] != 0;
    request.to_end = crops.to_end.data()[i] != 0;
    request.exact = settings.exact;
    request.colour_only = settings.colour_only;
    request.max_pixels = settings.max_pixels;
  }
  return batch;
}

// Submits spans of one file: offsets and sizes (N, F); field `image` is the one to decode.
Ticket submit_spans(Pool &pool, const std::optional<Images> &out, const Crops &crops,
                    const Settings &settings, const std::shared_ptr<SourceFile> &file,
                    const Array<std::uint64_t, 2> &offsets, const Array<std::uint64_t, 2> &sizes,
                    std::size_t image, const std::optional<Array<std::uint8_t, 2>> &records,
                    const std::optional<Array<std::uint64_t, 1>> &checksums, bool announce) {
  const Ticket batch = new_batch(out, crops, settings);
  const std::size_t count = batch->places.size(), fields = offsets.shape(1);
  require(offsets.shape(0) == count && sizes.shape(0) == count && sizes.shape(1) == fields &&
              image < fields,
          "offsets, sizes (N, F), image < F");
  if (file->mapped()) catch_bus_errors();
  batch->files.push_back(file);
  for (std::size_t i = 0; i < count; ++i) {
    Place &place = batch->places[i];
    place.file = file.get();
    place.offset = offsets.data()[i * fields + image];
    place.size = sizes.data()[i * fields + image];
  }
  if (checksums) {
    require(records && records->shape(0) == count && checksums->shape(0) == count,
            "records (N, R) and checksums (N,)");
    batch->checks = Checks{checksums->data(), records->data(), records->shape(1), offsets.data(),
                           sizes.data(), fields};
  }
  const nb::gil_scoped_release unlocked;
  if (announce) {
    for (const Place &place : batch->places) file->announce(place.offset, place.size);
  }
  pool.submit(batch);
  return batch;
}

// Submits whole files or raw pixels in memory; the caller keeps them until the batch is finished.
Ticket submit_memory(Pool &pool, const std::optional<Images> &out, const Crops &crops,
                     const Settings &settings, const nb::list &buffers) {
  const Ticket batch = new_batch(out, crops, settings);
  require(nb::len(buffers) == batch->places.size(), "buffers must be one per row");
  for (std::size_t i = 0; i < batch->places.size(); ++i) {
    const auto bytes = nb::cast<Bytes>(buffers[i], false);
    batch->places[i].memory = bytes.data();
    batch->places[i].size = bytes.size();
  }
  pool.submit(batch);
  return batch;
}

nb::list failures(const Ticket &batch) {
  nb::list found;
  for (const auto &[row, message] : batch->failures) {
    found.append(nb::make_tuple(row, nb::str(message.c_str(), message.size())));
  }
  return found;
}

}  // namespace
}  // namespace fastrot

void bind_batch(nb::module_ &module) {
  using namespace fastrot;
  using namespace nb::literals;

  nb::class_<SourceFile>(module, "SourceFile")
      .def("__init__",
           [](SourceFile *file, int descriptor, bool map) {
             try {
               new (file) SourceFile(descriptor, map);
             } catch (const std::system_error &error) {
               errno = error.code().value();
               PyErr_SetFromErrno(PyExc_OSError);
               throw nb::python_error();
             }
           },
           "descriptor"_a, "map"_a)
      .def_prop_ro("mapped", &SourceFile::mapped);

  nb::class_<Settings>(module, "CropSettings")
      .def(nb::init<int, bool, bool, std::uint64_t>(), "size"_a, "exact"_a, "colour_only"_a,
           "max_pixels"_a);

  nb::class_<Crops>(module, "Crops")
      .def(nb::init<Array<std::int32_t, 2>, Array<std::int32_t, 2>, Array<std::uint8_t, 1>,
                    Array<std::uint8_t, 1>, Array<std::uint8_t, 1>>(),
           "boxes"_a.noconvert(), "sizes"_a.noconvert(), "orientation"_a.noconvert(),
           "raw"_a.noconvert(), "to_end"_a.noconvert());

  nb::class_<Batch>(module, "BatchTicket");

  nb::class_<Pool>(module, "DecodePool")
      .def("__init__",
           [](Pool *pool, int threads) {
             require(threads >= 1, "threads must be at least 1");
             new (pool) Pool(threads);
           },
           "threads"_a)
      .def("submit_spans", &submit_spans, "out"_a.noconvert().none(), "crops"_a, "settings"_a,
           "file"_a, "offsets"_a.noconvert(), "sizes"_a.noconvert(), "image"_a,
           "records"_a.noconvert().none(), "checksums"_a.noconvert().none(), "announce"_a)
      .def("submit_memory", &submit_memory, "out"_a.noconvert().none(), "crops"_a, "settings"_a,
           "buffers"_a)
      .def("wait", [](Pool &pool, const Ticket &batch, double seconds) {
             const nb::gil_scoped_release unlocked;
             return pool.wait(*batch, seconds);
           }, "batch"_a, "seconds"_a)
      .def("failures", [](Pool &, const Ticket &batch) { return failures(batch); }, "batch"_a)
      .def("discard", [](Pool &pool, double seconds) {
             const nb::gil_scoped_release unlocked;
             return pool.discard(seconds);
           }, "seconds"_a);

  module.attr("simd") = passes().name;
}
