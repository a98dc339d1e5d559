package ratestream;

import java.math.BigDecimal;
import java.math.BigInteger;
import java.math.MathContext;
import java.math.RoundingMode;
import java.nio.ByteBuffer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;

/** The last prices of a pair, oldest first: what is kept of them and how, and their mean. */
final class Windows {
    static final int SIZE = 10;
    private static final MathContext TWELVE_DIGITS = new MathContext(12, RoundingMode.HALF_EVEN);

    private Windows() {}

    /** The prices of the window, which may be null, and then this one; at most SIZE. */
    static BigDecimal[] push(BigDecimal[] window, BigDecimal price) {
        if (window == null) {
            return new BigDecimal[] {price};
        }
        int kept = Math.min(window.length, SIZE - 1);
        BigDecimal[] pushed = new BigDecimal[kept + 1];
        System.arraycopy(window, window.length - kept, pushed, 0, kept);
        pushed[kept] = price;
        return pushed;
    }

    /** The exact sum divided once, rounded half-even to 12 digits, without trailing zeros. */
    static BigDecimal mean(BigDecimal[] window) {
        BigDecimal sum = window[0];
        for (int n = 1; n < window.length; n++) {
            sum = sum.add(window[n]);
        }
        BigDecimal mean = sum.divide(BigDecimal.valueOf(window.length), TWELVE_DIGITS);
        BigDecimal plain = mean.stripTrailingZeros();
        return plain.scale() < 0 ? plain.setScale(0) : plain;
    }

    /** A list of numbers. */
    static Serde<BigDecimal[]> json() {
        return Json.serde(BigDecimal[].class);
    }

    /**
     * Of each price one byte of scale and one of length, then the digits as a number; scales and
     * lengths are below 128.
     */
    static Serde<BigDecimal[]> binary() {
        return Serdes.serdeFrom((topic, window) -> pack(window), (topic, data) -> unpack(data));
    }

    private static byte[] pack(BigDecimal[] window) {
        if (window == null) {
            return null;
        }
        byte[][] digits = new byte[window.length][];
        int length = 0;
        for (int n = 0; n < window.length; n++) {
            digits[n] = digits(window[n]);
            length += 2 + digits[n].length;
        }
        ByteBuffer packed = ByteBuffer.allocate(length);
        for (int n = 0; n < window.length; n++) {
            packed.put((byte) window[n].scale()).put((byte) digits[n].length).put(digits[n]);
        }
        return packed.array();
    }

    private static byte[] digits(BigDecimal price) {
        return price.unscaledValue().toByteArray();
    }

    private static BigDecimal[] unpack(byte[] data) {
        if (data == null) {
            return null;
        }
        BigDecimal[] window = new BigDecimal[count(data)];
        int at = 0;
        for (int n = 0; n < window.length; n++) {
            int scale = data[at];
            int length = data[at + 1];
            window[n] = price(data, at + 2, length, scale);
            at += 2 + length;
        }
        return window;
    }

    private static int count(byte[] data) {
        int count = 0;
        for (int at = 0; at < data.length; at += 2 + data[at + 1]) {
            count++;
        }
        return count;
    }

    private static BigDecimal price(byte[] data, int from, int length, int scale) {
        if (length > Long.BYTES) {
            return new BigDecimal(new BigInteger(data, from, length), scale);
        }
        long digits = data[from];
        for (int at = from + 1; at < from + length; at++) {
            digits = digits << 8 | data[at] & 0xFF;
        }
        return BigDecimal.valueOf(digits, scale);
    }
}
