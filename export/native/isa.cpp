#include <cstdlib>
#include <string>

#include "kernels.h"

namespace sparseticket {
namespace {

const Kernels* choose() {
  const char* asked = std::getenv("SPARSETICKET_ISA");
  const std::string wanted = asked ? asked : "";
  const Kernels* fastest = portable_kernels();
  const Kernels* named = wanted == fastest->name ? fastest : nullptr;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Kernels* possible[] = {avx2 ? avx2_kernels() : nullptr, avx512 ? avx512_kernels() : nullptr,
                               avx512 && __builtin_cpu_supports("avx512vnni") ? avx512_vnni_kernels() : nullptr};
  for (const Kernels* kernels : possible)
    if (kernels) {
      fastest = kernels;
      if (wanted == kernels->name) named = kernels;
    }
#endif
  return wanted.empty() ? fastest : named;
}

}  // namespace

const Kernels* chosen_kernels() {
  static const Kernels* const kernels = choose();
  return kernels;
}

}  // namespace sparseticket
