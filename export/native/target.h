// Code between TARGET_BEGIN(...) and TARGET_END is compiled for the named instruction sets, whatever the file's flags.
#pragma once

#define SPARSETICKET_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SPARSETICKET_ATTRIBUTE(sets) \
  SPARSETICKET_PRAGMA(clang attribute push(__attribute__((target(sets))), apply_to = function))
#define TARGET_BEGIN(sets) SPARSETICKET_ATTRIBUTE(sets)
#define TARGET_END _Pragma("clang attribute pop")
#else
#define TARGET_BEGIN(sets) _Pragma("GCC push_options") SPARSETICKET_PRAGMA(GCC target(sets))
#define TARGET_END _Pragma("GCC pop_options")
#endif
