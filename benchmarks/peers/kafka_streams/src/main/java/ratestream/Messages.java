package ratestream;

import com.fasterxml.jackson.annotation.JsonFormat;
import java.math.BigDecimal;
import java.util.Map;

/** What goes over the wire; decimals are JSON strings, times milliseconds since the epoch. */
final class Messages {
    private Messages() {}

    record Quote(
            String pair,
            String source,
            @JsonFormat(shape = JsonFormat.Shape.STRING) BigDecimal price,
            long observed_at,
            long received_at) {}

    record Average(
            String pair,
            String source,
            @JsonFormat(shape = JsonFormat.Shape.STRING) BigDecimal mean,
            int count,
            long observed_at,
            long received_at) {}

    record Snapshot(
            String source, long observed_at, long received_at, Map<String, BigDecimal> rates) {}
}
